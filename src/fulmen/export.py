"""Export: a module as a file that runs without it (ONNX, TorchScript, TensorRT)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from fulmen.extras import need

if TYPE_CHECKING:
    from fulmen.module import LightningModule


class Exporting:
    """What a LightningModule can be turned into."""

    def to_onnx(self, file_path: str | Path | IO[bytes] | None = None, input_sample: Any = None, **kwargs: Any) -> Any:
        """Exports the module, in eval mode, as an ONNX graph.

        Args:
            file_path: Where to, a path or an open binary file; None only returns the program.
            input_sample: An input of ``forward``, a tuple of several, or a dictionary of them by name; None takes
                ``example_input_array``. It passes the hooks of the transfer to the device first.
            **kwargs: Passed on to ``torch.onnx.export``.

        Returns:
            What ``torch.onnx.export`` returns: a ``torch.onnx.ONNXProgram``, or None under ``dynamo=False``.

        Raises:
            ValueError: There is no input, or ``dynamo=False`` without ``file_path``.
            ModuleNotFoundError: The extra ``onnx`` is not installed.
        """
        module = cast("LightningModule", self)
        need("onnx")
        dynamo = kwargs.get("dynamo", inspect.signature(torch.onnx.export).parameters["dynamo"].default)
        if dynamo:
            need("onnxscript")
        elif file_path is None:
            raise ValueError("`to_onnx(dynamo=False)` needs a file: `to_onnx('model.onnx', dynamo=False)`.")
        with ready_for_export(module):
            sample = sample_on_device(module, "to_onnx", "input_sample", input_sample)
            if isinstance(sample, Mapping):
                kwargs["kwargs"] = dict(sample)
            arguments = () if isinstance(sample, Mapping) else sample if isinstance(sample, tuple) else (sample,)
            if dynamo and not isinstance(file_path, (str, Path, type(None))):
                program = cast(Any, torch.onnx.export(cast(nn.Module, self), arguments, **kwargs))
                program.save(file_path)
                return program
            place = str(file_path) if isinstance(file_path, Path) else file_path
            return torch.onnx.export(cast(nn.Module, self), arguments, cast(Any, place), **kwargs)

    def to_torchscript(
        self,
        file_path: str | Path | None = None,
        method: str | None = "script",
        example_inputs: Any | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compiles the module, in eval mode, to TorchScript, which torch itself has deprecated: rather ``to_onnx``.

        Args:
            file_path: Where it is saved, if anywhere: a path or URL.
            method: "script" compiles the source of ``forward``, "trace" records one call of it.
            example_inputs: The inputs of that call: a tensor or a tuple; None takes ``example_input_array``. They pass
                the hooks of the transfer to the device first.
            **kwargs: Passed on to ``torch.jit.script`` or ``torch.jit.trace``.

        Returns:
            The ``torch.jit.ScriptModule``.

        Raises:
            ValueError: Another ``method``, or no inputs to trace with.
        """
        module = cast("LightningModule", self)
        if method not in ("script", "trace"):
            raise ValueError(f"`to_torchscript(method={method!r})`: expected 'script' or 'trace'.")
        with ready_for_export(module), without_trainer(module):
            if method == "script":
                scripted: Any = torch.jit.script(cast(nn.Module, self), **kwargs)
            else:
                sample = sample_on_device(module, "to_torchscript(method='trace')", "example_inputs", example_inputs)
                scripted = torch.jit.trace(cast(nn.Module, self), sample, **kwargs)  # type: ignore[no-untyped-call]
        if file_path is not None:
            from fulmen.checkpoint.store import writer

            with writer(file_path) as stream:
                torch.jit.save(scripted, stream)
        return scripted

    def to_tensorrt(
        self,
        file_path: str | Path | None = None,
        input_sample: Any | None = None,
        ir: Literal["default", "dynamo", "ts"] = "default",
        output_format: Literal["exported_program", "torchscript"] = "exported_program",
        retrace: bool = False,
        default_device: str | torch.device = "cuda",
        **compile_kwargs: Any,
    ) -> Any:
        """Compiles the module, in eval mode, with TensorRT, for NVIDIA GPUs.

        Args:
            file_path: Where it is saved, if anywhere.
            input_sample: An input of ``forward``, or a tuple of several; None takes ``example_input_array``.
            ir: How TensorRT gets the graph.
            output_format: How it is saved.
            retrace: Whether the graph is recorded anew when it is saved.
            default_device: The GPU, if the module is not on one.
            **compile_kwargs: Passed on to ``torch_tensorrt.compile``.

        Returns:
            The compiled module.

        Raises:
            ModuleNotFoundError: ``torch_tensorrt`` is not installed.
            ValueError: There is no input, or ``ir="ts"`` is to be saved as an exported program.
        """
        module = cast("LightningModule", self)
        tensorrt: Any = need("torch_tensorrt")
        if file_path is not None and ir == "ts" and output_format != "torchscript":
            raise ValueError(
                f"`to_tensorrt(ir='ts', output_format={output_format!r})`: TorchScript can only be saved as such. Pass"
                " `output_format='torchscript'`."
            )
        device = torch.device(default_device)
        if module.device.type != device.type:
            module.to(device)
        with ready_for_export(module):
            sample = sample_on_device(module, "to_tensorrt", "input_sample", input_sample)
            inputs = list(sample) if isinstance(sample, (tuple, list)) else [sample]
            compiled = tensorrt.compile(module, ir=ir, inputs=inputs, **compile_kwargs)
            if file_path is not None:
                tensorrt.save(compiled, str(file_path), inputs=inputs, output_format=output_format, retrace=retrace)
        return compiled


@contextmanager
def ready_for_export(module: LightningModule) -> Iterator[None]:
    """Without gradients and in eval mode; afterwards every submodule is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def without_trainer(module: LightningModule) -> Iterator[None]:
    """Lets TorchScript read every attribute of a module; it does not expect that ``trainer`` raises."""
    before: dict[Any, Any] = {part: part._trainer for part in module.modules() if hasattr(part, "_trainer")}
    for part in before:
        part._trainer = SimpleNamespace()
    try:
        yield
    finally:
        for part, trainer in before.items():
            part._trainer = trainer


def sample_on_device(module: LightningModule, asked: str, argument: str, sample: Any) -> Any:
    """The input to export with, as the hooks bring a batch to the device.

    Raises:
        ValueError: There is none.
    """
    sample = module.example_input_array if sample is None else sample
    if sample is None:
        raise ValueError(
            f"`{asked}` needs an input of `forward`. Give `{argument}`, or set `self.example_input_array`."
        )
    sample = module.on_before_batch_transfer(sample, 0)
    sample = module.transfer_batch_to_device(sample, module.device, 0)
    return module.on_after_batch_transfer(sample, 0)
