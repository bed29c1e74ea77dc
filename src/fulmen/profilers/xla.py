"""What runs on a TPU, by the profiler of PyTorch/XLA."""

from __future__ import annotations

from typing import Any, ClassVar

from fulmen.extras import need
from fulmen.profilers.profiler import Profiler

__all__ = ["XLAProfiler"]


class XLAProfiler(Profiler):
    """Names the parts of a run for the profiler of PyTorch/XLA, whose server TensorBoard can be connected to.

    Args:
        port: Port of the profiler's server.

    Raises:
        ModuleNotFoundError: `torch_xla` is not installed.
    """

    STEP_FUNCTIONS: ClassVar[set[str]] = {"validation_step", "test_step", "predict_step"}
    RECORD_FUNCTIONS: ClassVar[set[str]] = {
        "training_step",
        "backward",
        "validation_step",
        "test_step",
        "predict_step",
    }

    def __init__(self, port: int = 9012) -> None:
        need("torch_xla")
        super().__init__()
        self.port = port
        self._records: dict[str, Any] = {}
        self._steps: dict[str, int] = {}
        self._server: Any = None

    def start(self, action_name: str) -> None:
        """An action begins; those of `RECORD_FUNCTIONS` are recorded."""
        name = action_name.rpartition(".")[2]
        if name not in self.RECORD_FUNCTIONS:
            return
        profiler = need("torch_xla.debug.profiler")
        if self._server is None:
            self._server = profiler.start_server(self.port)
        if name in self.STEP_FUNCTIONS:
            step = self._steps[name] = self._steps.get(name, -1) + 1
            record = profiler.StepTrace(name, step_num=step)
        else:
            record = profiler.Trace(name)
        record.__enter__()
        self._records[action_name] = record

    def stop(self, action_name: str) -> None:
        """An action has ended."""
        record = self._records.pop(action_name, None)
        if record is not None:
            record.__exit__(None, None, None)
