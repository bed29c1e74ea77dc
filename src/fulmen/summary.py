"""A model at a glance: its layers, parameters, modes, sizes and floating-point operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.hooks import RemovableHandle

from fulmen.ranks import rank_zero_warn
from fulmen.tree import move

__all__ = [
    "LayerSummary",
    "ModelSummary",
    "SummaryData",
    "format_summary",
    "get_formatted_model_size",
    "get_human_readable_count",
    "parse_batch_shape",
    "summarize",
]

PARAMETER_NUM_UNITS = [" ", "K", "M", "B", "T"]
UNKNOWN_SIZE = "?"
LEFTOVER_PARAMS_NAME = "other params"
NOT_APPLICABLE = "n/a"

SummaryData = list[tuple[str, list[str]]]
"""The columns of a summary's table: (header, one cell per row)."""

_BITS = {"16": 16, "bf16": 16, "32": 32, "64": 64}


def get_human_readable_count(number: int) -> str:
    """Shorten a count to three digits or so and a unit.

    Args:
        number: A count, not negative.

    Returns:
        The count, a space, and one of " ", "K", "M", "B", "T": 123 -> "123  ", 1234 -> "1.2 K", 3e10 -> "30.0 B". Above
        the largest unit the number keeps its digits: 10**18 -> "1,000,000 T".

    Raises:
        ValueError: If `number` is negative.
    """
    if number < 0:
        raise ValueError(f"A count cannot be negative, got {number}.")
    groups = (len(str(int(number))) + 2) // 3
    index = min(groups, len(PARAMETER_NUM_UNITS)) - 1
    value = number / 1000**index
    text = f"{int(value):,d}" if index == 0 or value >= 100 else f"{value:,.1f}"
    return f"{text} {PARAMETER_NUM_UNITS[index]}"


def get_formatted_model_size(total_model_size: float) -> str:
    """A size in megabytes with three decimals: 12345.6789 -> "12,345.679"."""
    return f"{total_model_size:,.3f}"


def parse_batch_shape(batch: Any) -> str | list[Any]:
    """The shape of a tensor as a list, of a list or tuple as the list of its items' shapes, "?" for anything else."""
    if hasattr(batch, "shape"):
        return list(batch.shape)
    if isinstance(batch, (list, tuple)):
        return [parse_batch_shape(item) for item in batch]
    return UNKNOWN_SIZE


def _count(parameter: nn.Parameter | Tensor) -> int:
    return 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()


class LayerSummary:
    """One layer: type, parameters, mode, and the sizes of what went in and out of its first call.

    Args:
        module: The layer. A forward hook stays on it until its first call or `detach_hook()`.
    """

    _count: Callable[[nn.Parameter | Tensor], int] = staticmethod(_count)

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._in_size: str | list[Any] = UNKNOWN_SIZE
        self._out_size: str | list[Any] = UNKNOWN_SIZE
        self._training = module.training
        self._handle = self._watch_first_call()

    def _watch_first_call(self) -> RemovableHandle | None:
        if isinstance(self._module, torch.jit.ScriptModule):  # takes no Python hooks
            return None

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inputs = (*args, *kwargs.values())
            self._in_size = parse_batch_shape(inputs[0] if len(inputs) == 1 else inputs)
            self._out_size = parse_batch_shape(output)
            self.detach_hook()

        return self._module.register_forward_hook(note, with_kwargs=True)

    def detach_hook(self) -> None:
        """Take the forward hook off the layer; does nothing the second time."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def in_size(self) -> str | list[Any]:
        """Shape of the input of the first call, "?" if there was none."""
        return self._in_size

    @property
    def out_size(self) -> str | list[Any]:
        """Shape of the output of the first call, "?" if there was none."""
        return self._out_size

    @property
    def layer_type(self) -> str:
        """Name of the layer's class."""
        return str(type(self._module).__name__)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the layer and everything below it; uninitialised ones count 0."""
        return sum(self._count(parameter) for parameter in self._module.parameters())

    @property
    def training(self) -> bool:
        """Whether the layer was in train mode when it was summarised."""
        return self._training


class ModelSummary:
    """The layers of a model and its totals; `str(summary)` is a table.

    With `model.example_input_array` set, the model runs once on it (in eval mode, without gradients, in the trainer's
    precision; modes and random states are put back), which gives sizes and FLOPs, and initialises lazy parameters.

    Args:
        model: The module to summarise.
        max_depth: How many levels of nested layers get a row: 1 the direct children, -1 all, 0 none.

    Raises:
        ValueError: If `max_depth` is not an integer >= -1.

    Example::

        print(ModelSummary(model, max_depth=-1))
    """

    _layer_summary: type[LayerSummary] = LayerSummary
    _count: Callable[[nn.Parameter | Tensor], int] = staticmethod(_count)

    def __init__(self, model: nn.Module, max_depth: int = 1) -> None:
        check_max_depth(max_depth)
        self._model = model
        self._max_depth = max_depth
        self._flops: Mapping[str, dict[Any, int]] = {}
        self._layers = self.summarize()
        self._warn_about_lazy_parameters()

    def summarize(self) -> dict[str, LayerSummary]:
        """Look at the model (again).

        Returns:
            One `LayerSummary` per row of the table, by the layer's name.
        """
        self._mode_counts = self._count_modes()
        self._layers = {name: self._layer_summary(module) for name, module in self.named_modules}
        try:
            if self._example_input is not None:
                self._run_example()
        finally:
            for layer in self._layers.values():
                layer.detach_hook()
        return self._layers

    @property
    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """The layers that get a row, by name and in the model's order."""
        if self._max_depth == 0:
            return []
        below = [(name, module) for name, module in self._model.named_modules() if name]
        if self._max_depth == -1:
            return below
        return [(name, module) for name, module in below if name.count(".") < self._max_depth]

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers with a row."""
        return list(self._layers)

    @property
    def layer_types(self) -> list[str]:
        """Class names of the layers with a row."""
        return [layer.layer_type for layer in self._layers.values()]

    @property
    def in_sizes(self) -> list[str | list[Any]]:
        """Input shape of each layer's first call; "?" where it was not called."""
        return [layer.in_size for layer in self._layers.values()]

    @property
    def out_sizes(self) -> list[str | list[Any]]:
        """Output shape of each layer's first call; "?" where it was not called."""
        return [layer.out_size for layer in self._layers.values()]

    @property
    def param_nums(self) -> list[int]:
        """Number of parameters of each layer with a row."""
        return [layer.num_parameters for layer in self._layers.values()]

    @property
    def training_modes(self) -> list[bool]:
        """Whether each layer with a row is in train mode."""
        return [layer.training for layer in self._layers.values()]

    @property
    def total_training_modes(self) -> dict[str, int]:
        """Number of modules below the model, at any depth, in "train" and in "eval" mode."""
        return self._mode_counts

    @property
    def total_parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(self._count(parameter) for parameter in self._model.parameters())

    @property
    def trainable_parameters(self) -> int:
        """Number of parameters that require a gradient."""
        return sum(self._count(parameter) for parameter in self._model.parameters() if parameter.requires_grad)

    @property
    def total_layer_params(self) -> int:
        """Number of parameters inside the layers with a row; one that several layers share counts once."""
        inside = {id(parameter): parameter for _, module in self.named_modules for parameter in module.parameters()}
        return sum(self._count(parameter) for parameter in inside.values())

    @property
    def model_size(self) -> float:
        """Size of the parameters in megabytes (10**6 bytes) in the precision of the trainer; 32 bit without one."""
        return self.total_parameters * self._bits_per_parameter() / 8 * 1e-6

    @property
    def flop_counts(self) -> dict[str, dict[Any, int]]:
        """Floating-point operations of one forward pass: layer -> operator -> count; empty without an example input."""
        root = type(self._model).__name__
        return {name: dict(self._flops.get(f"{root}.{name}", {})) for name in self._layers}

    @property
    def total_flops(self) -> int:
        """Floating-point operations of one forward pass of the model; 0 without an example input."""
        return sum(self._flops.get("Global", {}).values())

    def data(self) -> SummaryData:
        """The columns of the table, as strings; FLOPs and sizes only with an example input, which they come from."""
        layers = list(self._layers.values())
        flops = [sum(counts.values()) for counts in self.flop_counts.values()]
        columns: SummaryData = [
            (" ", [str(index) for index in range(len(layers))]),
            ("Name", self.layer_names),
            ("Type", self.layer_types),
            ("Params", [get_human_readable_count(number) for number in self.param_nums]),
            ("Mode", ["train" if training else "eval" for training in self.training_modes]),
        ]
        if self._example_input is not None:
            columns.append(("FLOPs", [get_human_readable_count(number) for number in flops]))
            columns.append(("In sizes", [str(size) for size in self.in_sizes]))
            columns.append(("Out sizes", [str(size) for size in self.out_sizes]))
        leftover = self.total_parameters - self.total_layer_params
        if leftover:
            known = {" ": " ", "Name": LEFTOVER_PARAMS_NAME, "Params": get_human_readable_count(leftover)}
            for header, cells in columns:
                cells.append(known.get(header, NOT_APPLICABLE))
        return columns

    def __str__(self) -> str:
        return format_summary(
            self.data(),
            self.total_parameters,
            self.trainable_parameters,
            self.model_size,
            self.total_training_modes,
            self.total_flops,
        )

    def __repr__(self) -> str:
        return str(self)

    @property
    def _example_input(self) -> Any:
        return getattr(self._model, "example_input_array", None)

    def _count_modes(self) -> dict[str, int]:
        flags = [module.training for module in self._model.modules()][1:]
        return {"train": sum(flags), "eval": len(flags) - sum(flags)}

    def _run_example(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        from fulmen.fabric.seed import isolate_rng

        example = move(self._example_input, _device_of(self._model))
        counter = FlopCounterMode(display=False)
        with isolate_rng(), _eval_mode(self._model), torch.no_grad(), _forward_context(self._model), counter:
            try:
                _call(self._model, example)
            except Exception as error:
                error.add_note(
                    f"Raised while {type(self._model).__name__} ran on its `example_input_array` for the summary."
                    " Set an example that `forward` takes, or None to leave sizes and FLOPs out of the summary."
                )
                raise
        self._flops = counter.get_flop_counts()

    def _bits_per_parameter(self) -> int:
        trainer = _trainer_of(self._model)
        precision = "32-true" if trainer is None else str(trainer.precision)
        width, _, kind = precision.partition("-")
        # Mixed precision keeps its parameters in 32 bits.
        bits = 32 if kind == "mixed" else _BITS.get(width)
        if bits is None or kind not in ("", "true", "mixed"):
            rank_zero_warn(f"The size of a parameter in precision {precision!r} is not known; 32 bits are assumed.")
            return 32
        return bits

    def _warn_about_lazy_parameters(self) -> None:
        if any(isinstance(parameter, UninitializedParameter) for parameter in self._model.parameters()):
            rank_zero_warn(
                f"{type(self._model).__name__} has uninitialised (lazy) parameters, which the summary counts as 0. "
                "For true numbers, set `self.example_input_array` in the module."
            )


def summarize(lightning_module: nn.Module, max_depth: int = 1) -> ModelSummary:
    """Summarise a module.

    Args:
        lightning_module: The module.
        max_depth: How many levels of nested layers get a row: 1 the direct children, -1 all, 0 none.

    Returns:
        The summary; print it.
    """
    return ModelSummary(lightning_module, max_depth=max_depth)


def check_max_depth(max_depth: object) -> None:
    """Raise ValueError unless `max_depth` is an integer >= -1."""
    if not isinstance(max_depth, int) or max_depth < -1:
        raise ValueError(f"`max_depth` can be -1 (all layers), 0 (no layer) or a positive integer, got {max_depth!r}.")


def format_summary(
    summary_data: SummaryData,
    total_parameters: int,
    trainable_parameters: int,
    model_size: float,
    total_training_modes: Mapping[str, int],
    total_flops: int,
) -> str:
    """The table and the totals of a summary as text."""
    widths = [max(len(cell) for cell in [header, *cells]) for header, cells in summary_data]
    rows = zip(*(cells for _, cells in summary_data), strict=True)
    line = "-" * (sum(widths) + 3 * (len(widths) - 1))
    parts = [_format_row([header for header, _ in summary_data], widths), line]
    parts += [_format_row(row, widths) for row in rows]
    parts.append(line)
    totals = summary_totals(
        summary_data, total_parameters, trainable_parameters, model_size, total_training_modes, total_flops
    )
    parts += [f"{value:<10}{label}" for label, value in totals]
    return "\n".join(parts)


def summary_totals(
    summary_data: SummaryData,
    total_parameters: int,
    trainable_parameters: int,
    model_size: float,
    total_training_modes: Mapping[str, int],
    total_flops: int,
) -> list[tuple[str, str]]:
    """The totals of a summary as (label, formatted value); FLOPs only if the table has them."""
    totals = [
        ("Trainable params", get_human_readable_count(trainable_parameters)),
        ("Non-trainable params", get_human_readable_count(total_parameters - trainable_parameters)),
        ("Total params", get_human_readable_count(total_parameters)),
        ("Total estimated model params size (MB)", get_formatted_model_size(model_size)),
        ("Modules in train mode", str(total_training_modes["train"])),
        ("Modules in eval mode", str(total_training_modes["eval"])),
    ]
    if any(header == "FLOPs" for header, _ in summary_data):
        totals.append(("Total FLOPs", get_human_readable_count(total_flops)))
    return totals


def _format_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _trainer_of(model: nn.Module) -> Any:
    # A LightningModule without a trainer raises RuntimeError, another module AttributeError.
    try:
        return model.trainer
    except (RuntimeError, AttributeError):
        return None


def _device_of(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _forward_context(model: nn.Module) -> AbstractContextManager[Any]:
    trainer = _trainer_of(model)
    if trainer is None:
        return nullcontext()
    context: AbstractContextManager[Any] = trainer.precision_plugin.forward_context()
    return context


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _call(model: Callable[..., Any], example: Any) -> None:
    if isinstance(example, (list, tuple)):
        model(*example)
    elif isinstance(example, Mapping):
        model(**example)
    else:
        model(example)
