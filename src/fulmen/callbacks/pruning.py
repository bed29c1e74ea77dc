"""ModelPruning: set the least important weights to zero in the course of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.fabric.seed import isolate_rng
from fulmen.ranks import rank_zero_info

if TYPE_CHECKING:
    from fulmen.fabric.strategies import Strategy
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["ModelPruning"]

_Parameter = tuple[nn.Module, str]
_FUNCTIONS: dict[str, Callable[..., nn.Module]] = {
    "l1_unstructured": prune.l1_unstructured,
    "ln_structured": prune.ln_structured,
    "random_structured": prune.random_structured,
    "random_unstructured": prune.random_unstructured,
}
_METHODS: dict[str, type[prune.BasePruningMethod]] = {
    "l1_unstructured": prune.L1Unstructured,
    "ln_structured": prune.LnStructured,
    "random_structured": prune.RandomStructured,
    "random_unstructured": prune.RandomUnstructured,
}
_ORIGINAL, _MASK = "_orig", "_mask"


class ModelPruning(Callback):
    """Prunes parameters with ``torch.nn.utils.prune`` at the end of epochs; each time more of what is left.

    While it trains, a pruned parameter ``weight`` is kept as ``weight_orig`` and ``weight_mask``. Its mask goes into
    the callback's part of a checkpoint, so that a resumed run goes on with it.

    Args:
        pruning_fn: "l1_unstructured", "random_unstructured", "ln_structured", "random_structured", or a class of
            ``torch.nn.utils.prune`` methods.
        parameters_to_prune: Pairs ``(module, parameter_name)``; empty for all parameters of ``parameter_names``.
        parameter_names: Names that are looked for in all layers; default "weight" and "bias".
        use_global_unstructured: Whether all parameters are ranked together, instead of each on its own.
        amount: How much of what is left to prune each time: a fraction (float) or a number (int) of entries, or a
            function of the epoch.
        apply_pruning: Whether to prune at all, or a function of the epoch.
        make_pruning_permanent: Whether masks are multiplied into the weights at the end of training and in the
            "state_dict" of checkpoints, so that both look as without pruning.
        use_lottery_ticket_hypothesis: Whether the weights that are left go back to their first values after each
            pruning (Frankle and Carbin, 2019), or a function of the epoch.
        resample_parameters: Whether they then get new random values instead of the first ones.
        pruning_dim: Along which dimension the structured methods take away whole slices.
        pruning_norm: The norm by which "ln_structured" ranks the slices.
        verbose: 1 reports how much is pruned, 2 also for each parameter.
        prune_on_train_epoch_end: Whether to prune at the end of training epochs instead of validation epochs.

    Attributes:
        pruning_fn: The function or class of ``torch.nn.utils.prune`` that is used.

    Raises:
        MisconfigurationException: Arguments that are none of the above, or that do not go together.
    """

    PARAMETER_NAMES: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(
        self,
        pruning_fn: str | type[prune.BasePruningMethod],
        parameters_to_prune: Sequence[_Parameter] = (),
        parameter_names: Sequence[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(amount, (int, float)) and not callable(amount):
            raise _wrong("amount", amount, "a fraction (float), a number of entries (int), or a function of the epoch")
        if verbose not in (0, 1, 2):
            raise _wrong("verbose", verbose, "0, 1 or 2")
        self.pruning_fn = _resolve(pruning_fn, use_global_unstructured, pruning_dim, pruning_norm)
        self.amount = amount
        self._parameters_to_prune = parameters_to_prune
        self._parameter_names = tuple(parameter_names or self.PARAMETER_NAMES)
        self._use_global_unstructured = use_global_unstructured
        self._apply_pruning = apply_pruning
        self._make_pruning_permanent = make_pruning_permanent
        self._use_lottery_ticket_hypothesis = use_lottery_ticket_hypothesis
        self._resample_parameters = resample_parameters
        self._arguments = {
            **({"dim": pruning_dim} if "structured" in _words(pruning_fn) else {}),
            **({"n": pruning_norm} if pruning_fn == "ln_structured" else {}),
        }
        self._verbose = verbose
        self._prune_on_train_epoch_end = prune_on_train_epoch_end
        self._pruned: dict[str, _Parameter] = {}
        self._originals: dict[str, Tensor] = {}
        self._fresh: dict[str, nn.Module] = {}
        self._restored: dict[str, Any] = {}
        self._hook: Any = None

    # ------------------------------------------------------------------------------------------------ which parameters

    @staticmethod
    def sanitize_parameters_to_prune(
        pl_module: nn.Module, parameters_to_prune: Sequence[_Parameter] = (), parameter_names: Sequence[str] = ()
    ) -> list[_Parameter]:
        """The parameters to prune, checked.

        Args:
            pl_module: The module they belong to.
            parameters_to_prune: Pairs ``(module, parameter_name)``; empty for all.
            parameter_names: Names that are then looked for; empty for "weight" and "bias".

        Raises:
            MisconfigurationException: These are no such pairs, or there is nothing to prune.
        """
        if not isinstance(parameters_to_prune, (list, tuple)) or not all(map(_is_pair, parameters_to_prune)):
            raise _wrong(
                "parameters_to_prune", parameters_to_prune, 'a list of pairs like `(model.encoder, "weight")`, or ()'
            )
        layers = list(pl_module.modules())
        for layer, name in parameters_to_prune:
            if layer not in layers or not _has_parameter(layer, name):
                raise _wrong(
                    "parameters_to_prune",
                    (layer, name),
                    f"layers of {type(pl_module).__name__}, each with the name of a parameter of its own",
                )
        if parameters_to_prune:
            return list(parameters_to_prune)
        names = tuple(parameter_names) or ModelPruning.PARAMETER_NAMES
        found = [(layer, name) for layer in layers for name in names if _has_parameter(layer, name)]
        if not found:
            raise MisconfigurationException(
                f"`ModelPruning`: no layer of {type(pl_module).__name__} has a parameter named"
                f" {' or '.join(map(repr, names))}. Name others: `ModelPruning(parameter_names=[...])`.",
                subject=pl_module,
            )
        return found

    def filter_parameters_to_prune(self, parameters_to_prune: Sequence[_Parameter] = ()) -> Sequence[_Parameter]:
        """Override it to leave some of the parameters out."""
        return parameters_to_prune

    # ------------------------------------------------------------------------------------------------ hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets a former run; from here on the module also takes states with masks."""
        self._originals, self._fresh, self._restored = {}, {}, {}
        if self._hook is not None:
            self._hook.remove()
        self._hook = pl_module.register_load_state_dict_pre_hook(_without_masks)  # type: ignore[no-untyped-call]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the module."""
        self._hook.remove()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settles what is pruned, when the module is complete; in a resumed fit, takes back the masks."""
        chosen = self.sanitize_parameters_to_prune(pl_module, self._parameters_to_prune, self._parameter_names)
        chosen = list(self.filter_parameters_to_prune(chosen))
        paths = {layer: path for path, layer in pl_module.named_modules()}
        self._pruned = {f"{paths[layer]}.{name}".lstrip("."): (layer, name) for layer, name in chosen}
        if self._use_lottery_ticket_hypothesis:
            for key, (layer, name) in self._pruned.items():
                if self._resample_parameters:
                    self._fresh[key] = _resampled(layer)
                else:
                    self._originals[key] = _trained(layer, name).detach().clone()
        self._restore()

    def _restore(self) -> None:
        for key, mask in self._restored.get("masks", {}).items():
            if key in self._pruned and not _is_pruned(*self._pruned[key]):
                layer, name = self._pruned[key]
                prune.custom_from_mask(layer, name, mask.to(getattr(layer, name).device))  # type: ignore[no-untyped-call]
        for key, original in self._restored.get("originals", {}).items():
            if key in self._originals:
                self._originals[key].copy_(original)
        self._restored = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes, if it is to be done here."""
        if self._prune_on_train_epoch_end:
            self._run(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes, if it is to be done here."""
        if not self._prune_on_train_epoch_end and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._run(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Multiplies the masks into the weights."""
        if self._make_pruning_permanent:
            self.make_pruning_permanent(pl_module)

    def _run(self, trainer: Trainer) -> None:
        with _same_draws(trainer.strategy):
            self._prune(trainer.current_epoch)

    def _prune(self, epoch: int) -> None:
        is_on = self._apply_pruning(epoch) if callable(self._apply_pruning) else self._apply_pruning
        amount = self.amount(epoch) if callable(self.amount) else self.amount
        if not is_on or not amount:
            return
        self.apply_pruning(amount)
        lottery = self._use_lottery_ticket_hypothesis
        if lottery(epoch) if callable(lottery) else lottery:
            self.apply_lottery_ticket_hypothesis()

    # ------------------------------------------------------------------------------------------------ pruning

    def apply_pruning(self, amount: int | float) -> None:
        """Prunes once.

        Args:
            amount: Fraction (float) or number (int) of the entries that are left.
        """
        if self._use_global_unstructured:
            prune.global_unstructured(list(self._pruned.values()), pruning_method=self.pruning_fn, amount=amount)
        else:
            for layer, name in self._pruned.values():
                self.pruning_fn(layer, name=name, amount=amount, **self._arguments)
        if self._verbose:
            self._report(amount)

    def apply_lottery_ticket_hypothesis(self) -> None:
        """Sets what is left of the weights back to their first (or to new) values."""
        for fresh in self._fresh.values():
            fresh.reset_parameters()  # type: ignore[operator]
        with torch.no_grad():
            for key, (layer, name) in self._pruned.items():
                source = self._originals[key] if key in self._originals else getattr(self._fresh[key], name)
                _trained(layer, name).copy_(source)
                for hook in _hooks(layer, name).values():
                    hook(layer, None)  # computes the masked weight again

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Multiplies the masks into the weights of all layers, and removes the masks."""
        for layer in module.modules():
            for key, hook in _hooks(layer).items():
                hook.remove(layer)
                del layer._forward_pre_hooks[key]

    def _report(self, amount: int | float) -> None:
        counts = {key: (int((mask == 0).sum()), mask.numel()) for key, mask in self._masks().items()}
        zeros, total = map(sum, zip(*counts.values(), strict=True))
        rank_zero_info(f"Pruned by {amount}: {zeros}/{total} ({zeros / total:.2%}) are zero.")
        if self._verbose == 2:
            for key, (zeros, total) in counts.items():
                rank_zero_info(f"  {key}: {zeros}/{total} ({zeros / total:.2%}) are zero.")

    def _masks(self) -> dict[str, Tensor]:
        return {
            key: getattr(layer, name + _MASK) for key, (layer, name) in self._pruned.items() if _is_pruned(layer, name)
        }

    # ------------------------------------------------------------------------------------------------ checkpoints

    def weights_to_save(self, trainer: Trainer, pl_module: LightningModule, weights: dict[str, Any]) -> dict[str, Any]:
        """The weights without masks, if pruning is to be permanent."""
        if self._make_pruning_permanent:
            for key in self._masks():
                if key + _MASK in weights:
                    weights[key] = weights.pop(key + _ORIGINAL) * weights.pop(key + _MASK)
        return weights

    def state_dict(self) -> dict[str, Any]:
        """The masks, and the first values of the weights if they are wanted."""
        state = {"masks": self._masks(), "originals": self._originals}
        return state if any(state.values()) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave, when fit starts."""
        self._restored = state_dict


@contextmanager
def _same_draws(strategy: Strategy) -> Iterator[None]:
    """Context in which all processes draw the same random numbers, so that they prune the same entries."""
    if strategy.world_size == 1:
        yield
        return
    seed = strategy.broadcast(int(torch.randint(2**62, ())))
    with isolate_rng():
        torch.manual_seed(seed)
        yield


def _wrong(name: str, value: object, expected: str) -> MisconfigurationException:
    return MisconfigurationException(f"`ModelPruning({name}={value!r})`: expected {expected}.", subject=value)


def _words(pruning_fn: object) -> list[str]:
    return pruning_fn.split("_") if isinstance(pruning_fn, str) else []


def _resolve(pruning_fn: object, is_global: bool, dim: int | None, norm: int | None) -> Any:
    """The function or class behind ``pruning_fn``; the other arguments must go with it."""
    if isinstance(pruning_fn, str) and pruning_fn in _METHODS:
        if "structured" in _words(pruning_fn) and dim is None:
            raise _wrong("pruning_dim", dim, f"a dimension, as {pruning_fn!r} takes away whole slices; e.g. 0")
        if pruning_fn == "ln_structured" and norm is None:
            raise _wrong("pruning_norm", norm, "the norm by which 'ln_structured' ranks slices, e.g. 1")
        if not is_global:
            return _FUNCTIONS[pruning_fn]
        method = _METHODS[pruning_fn]
    elif isinstance(pruning_fn, type) and issubclass(pruning_fn, prune.BasePruningMethod):
        if not is_global:
            raise _wrong("pruning_fn", pruning_fn, "a class to be used with `use_global_unstructured=True`")
        method = pruning_fn
    else:
        raise _wrong(
            "pruning_fn", pruning_fn, f"one of {', '.join(map(repr, _METHODS))}, or a subclass of `BasePruningMethod`"
        )
    if getattr(method, "PRUNING_TYPE", None) != "unstructured":
        raise _wrong("use_global_unstructured", True, f"False, as {method.__name__} does not prune single entries")
    return method


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and isinstance(value[0], nn.Module)
        and isinstance(value[1], str)
    )


def _is_pruned(layer: nn.Module, name: str) -> bool:
    return name + _ORIGINAL in layer._parameters and name + _MASK in layer._buffers


def _has_parameter(layer: nn.Module, name: str) -> bool:
    return layer._parameters.get(name) is not None or _is_pruned(layer, name)


def _trained(layer: nn.Module, name: str) -> Tensor:
    """The parameter that the optimizer knows."""
    parameter: Tensor = getattr(layer, name + _ORIGINAL if _is_pruned(layer, name) else name)
    return parameter


def _hooks(layer: nn.Module, name: str | None = None) -> dict[int, prune.BasePruningMethod]:
    """The pruning of one parameter, or of all, by its place among the layer's hooks."""
    found = {key: hook for key, hook in layer._forward_pre_hooks.items() if isinstance(hook, prune.BasePruningMethod)}
    return {key: hook for key, hook in found.items() if name in (None, hook._tensor_name)}


def _resampled(layer: nn.Module) -> nn.Module:
    if not callable(getattr(layer, "reset_parameters", None)):
        raise MisconfigurationException(
            f"`ModelPruning(resample_parameters=True)`: {type(layer).__name__} has no `reset_parameters()`, which makes"
            " its first values. Write one, or leave its parameters out with `parameters_to_prune`.",
            subject=layer,
        )
    return deepcopy(layer)


def _without_masks(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state with masks is loaded into layers that have none: their weights are those of the state, masked."""
    for key in [key.removesuffix(_MASK) for key in state_dict if key.endswith(_MASK)]:
        path, _dot, name = key.removeprefix(prefix).rpartition(".")
        if key + _ORIGINAL in state_dict and not _is_pruned(module.get_submodule(path), name):
            state_dict[key] = state_dict.pop(key + _ORIGINAL) * state_dict.pop(key + _MASK)
