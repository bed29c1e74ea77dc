"""Data parallel: every process has the whole model, and gradients are averaged (torch's DistributedDataParallel)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fulmen.fabric import distributed
from fulmen.fabric.errors import PlanError
from fulmen.fabric.launch import Launcher, ProcessLauncher
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.ranks import rank_zero_info

if TYPE_CHECKING:
    from fulmen.checkpoint.store import CheckpointIO
    from fulmen.fabric.accelerators import Accelerator
    from fulmen.fabric.environments import ClusterEnvironment
    from fulmen.fabric.precision import Precision

__all__ = ["DDPStrategy"]

F = TypeVar("F", bound=Callable[..., Any])

StartMethod = Literal["popen", "spawn", "fork", "forkserver"]


class _Steps(nn.Module):
    """What is wrapped for a Trainer: calls the step it is given, so that no forward is ever replaced."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A step of the module, in the place of its forward."""
        return step(*args, **kwargs)


class DDPStrategy(ParallelStrategy):
    """Every process has the whole model; gradients are averaged while the backward pass runs.

    Args:
        accelerator: Kind of the devices; None is filled in when the plan is made.
        parallel_devices: The devices of this machine; None is filled in when the plan is made.
        cluster_environment: Where ranks and addresses come from; None is filled in when the plan is made.
        checkpoint_io: Writes and reads checkpoints; None for files written by `torch.save`.
        precision_plugin: In which precision the module computes; None for 32 bit.
        ddp_comm_state: State of the communication hook.
        ddp_comm_hook: Exchanges the gradients in another way, e.g. `default_hooks.fp16_compress_hook` of
            `torch.distributed.algorithms.ddp_comm_hooks`.
        ddp_comm_wrapper: Wraps that hook, e.g. `default_hooks.fp16_compress_wrapper`.
        model_averaging_period: With the hook `post_localSGD_hook`: after how many steps the models are averaged.
        process_group_backend: "gloo", "nccl", ...; None for the default of the devices.
        timeout: After which an exchange between processes fails.
        start_method: How processes start that nobody else has started: "popen" runs the script again; "spawn", "fork"
            and "forkserver" run the call in new processes.
        precision: The `precision_plugin`, under the name it has for `Fabric`.
        **kwargs: Arguments of `DistributedDataParallel`: `find_unused_parameters`, `static_graph`,
            `gradient_as_bucket_view`, `broadcast_buffers`, ...

    Raises:
        ValueError: An unknown `start_method`.
    """

    strategy_name: ClassVar[str] = "ddp"

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: Sequence[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        ddp_comm_state: object | None = None,
        ddp_comm_hook: Callable[..., Any] | None = None,
        ddp_comm_wrapper: Callable[..., Any] | None = None,
        model_averaging_period: int | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = distributed.DEFAULT_TIMEOUT,
        start_method: StartMethod = "popen",
        precision: Precision | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            accelerator,
            parallel_devices,
            cluster_environment,
            checkpoint_io,
            precision_plugin,
            process_group_backend,
            timeout,
            precision,
        )
        if start_method not in ("popen", "spawn", "fork", "forkserver"):
            raise ValueError(
                f"start_method={start_method!r} is not known. Type one of: 'popen', 'spawn', 'fork', 'forkserver'"
            )
        self._start_method = start_method
        self._ddp_kwargs = kwargs
        self._ddp_comm_state, self._ddp_comm_hook = ddp_comm_state, ddp_comm_hook
        self._ddp_comm_wrapper, self._model_averaging_period = ddp_comm_wrapper, model_averaging_period
        self._model_averager: Any = None
        self._trainable: list[bool] = []

    @property
    def is_distributed(self) -> bool:
        """Yes."""
        return True

    def _make_launcher(self) -> Launcher:
        if self._start_method == "popen":
            return super()._make_launcher()
        return ProcessLauncher(self, self._start_method)

    # Modules

    def determine_ddp_device_ids(self) -> list[int] | None:
        """The `device_ids` of the wrapper: none on a CPU."""
        return None if self.root_device.type == "cpu" else [self.root_device.index]

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> nn.Module:
        """Bring a module to its device and wrap it; one without trainable parameters stays as it is."""
        module = super(ParallelStrategy, self).setup_module(module, move_to_device)
        return self._wrap(module) if _trains(module) else module

    def _wrap(self, module: nn.Module) -> DistributedDataParallel:
        if self.root_device.type == "cpu" and any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
            raise PlanError(
                "Batch norms share their statistics on GPUs only (`torch.nn.SyncBatchNorm`). On a CPU type:"
                " sync_batchnorm=False"
            )
        on_stream: AbstractContextManager[Any] = nullcontext()
        if self.root_device.type == "cuda":
            on_stream = torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        with on_stream:
            wrapped = DistributedDataParallel(module, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)
        if self._ddp_comm_hook is not None:
            hook = self._ddp_comm_hook
            hook = hook if self._ddp_comm_wrapper is None else self._ddp_comm_wrapper(hook)
            wrapped.register_comm_hook(self._ddp_comm_state, hook)
        return wrapped

    def configure_ddp(self) -> None:
        """Wrap the connected module for training."""
        if not _trains(self.model):
            raise RuntimeError(
                f"`{type(self.model).__name__}` has no parameter that requires a gradient, so there is nothing to train"
                " in parallel. Unfreeze some, or type: strategy='auto', devices=1"
            )
        ignored = getattr(self.model, "_ddp_params_and_buffers_to_ignore", None)
        steps = _Steps(self.model)
        if ignored:
            steps._ddp_params_and_buffers_to_ignore = [f"module.{name}" for name in ignored]  # type: ignore[assignment]
        self._wrap_steps(steps)

    def _wrap_steps(self, steps: nn.Module) -> None:
        self.model = self._wrap(steps)
        self._trainable = _trainable(steps)
        if not self.lightning_module.automatic_optimization:
            self.model.require_backward_grad_sync = False
            self.pre_backward = self._prepare_backward  # type: ignore[method-assign]  # the loop asks what is there

    def follow_trainable(self) -> bool:
        """Wrap the module anew if parameters were frozen or unfrozen, as finetuning does: DDP would not see that."""
        wrapped = self.model
        if not isinstance(wrapped, DistributedDataParallel) or _trainable(wrapped.module) == self._trainable:
            return False
        self._wrap_steps(wrapped.module)
        return True

    def prepare_model(self, trainer: Any) -> None:
        """Wrap the module in a fit; else give all processes the same weights."""
        if trainer.state.fn != "fit":
            _broadcast_state(self.model)
            return
        self.configure_ddp()

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizers; with `post_localSGD_hook` the one that averages the models."""
        super().setup_optimizers(trainer)
        if _is_a(self._ddp_comm_state, "PostLocalSGDState"):
            state: Any = self._ddp_comm_state
            self._average_models(state.start_localSGD_iter)

    def _average_models(self, warmup_steps: int) -> None:
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

        if self._model_averaging_period is None:
            raise ValueError(
                "The hook `post_localSGD_hook` needs to know when models are averaged. Type:"
                " DDPStrategy(..., model_averaging_period=4)"
            )
        for optimizer in self.optimizers:
            if _is_a(optimizer, "ZeroRedundancyOptimizer"):
                raise ValueError(
                    "`post_localSGD_hook` averages models, of which ZeroRedundancyOptimizer has only a part on each"
                    " process. Use another optimizer, or leave the hook out."
                )
        self._model_averager = PeriodicModelAverager(self._model_averaging_period, warmup_steps)
        self.optimizer_step = self._step_and_average  # type: ignore[method-assign]

    def teardown(self) -> None:
        """Unwrap the module and bring everything back to the CPU."""
        wrapped, self.model = self.model, self.lightning_module
        if isinstance(wrapped, DistributedDataParallel):
            _advise_static_graph(wrapped)
        super().teardown()

    # Steps

    def wrap_step(self, fn: F, training: bool = False) -> F:
        """A training step goes through the wrapper. Evaluation does not: its batches may differ in number."""
        if not training or not isinstance(self.model, DistributedDataParallel):
            return fn
        return partial(self.model, fn)  # type: ignore[return-value]

    def syncs_backward(self) -> bool:
        """Whether a backward pass exchanges gradients: not within a window."""
        return not isinstance(self.model, DistributedDataParallel) or self.model.require_backward_grad_sync

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which gradients stay on this process: for all but the last batch of a window."""
        wrapped: Any = module if isinstance(module, DistributedDataParallel) else self.model
        if not enabled or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def block_backward_sync(self) -> AbstractContextManager[Any]:
        """As `no_backward_sync`, for the connected module."""
        return self.no_backward_sync(self.model)

    def _prepare_backward(self, closure_loss: Tensor) -> None:
        """With manual optimisation each backward pass is prepared for itself, as there may be several in a step."""
        model: Any = self.model
        model.require_forward_param_sync = True
        model.reducer._rebuild_buckets()  # after the first pass; torch does so only in a forward
        finds = model.find_unused_parameters and not model.static_graph
        model.reducer.prepare_for_backward([closure_loss] if finds else [])

    def _step_and_average(
        self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, model: Any = None, **kwargs: Any
    ) -> Any:
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        self._model_averager.average_parameters(iter(optimizer.param_groups))
        return output

    def on_validation_start(self) -> None:
        """Evaluation sees the buffers of rank 0, as the training steps do."""
        self._broadcast_buffers()

    def _broadcast_buffers(self) -> None:
        model = self.model
        if isinstance(model, DistributedDataParallel) and model.broadcast_buffers:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    # State

    @property
    def saves_together(self) -> bool:
        """Whether an optimizer has a part of its state on each process."""
        return super().saves_together or any(_is_a(each, "ZeroRedundancyOptimizer") for each in self.optimizers)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer; of a sharded one all parts are brought to rank 0."""
        if not _is_a(optimizer, "ZeroRedundancyOptimizer"):
            return super().optimizer_state(optimizer)
        optimizer.consolidate_state_dict()  # type: ignore[attr-defined]
        return optimizer.state_dict() if self.is_global_zero else {}

    def explain(self, error: BaseException) -> BaseException:
        """Names the parameters without a gradient where torch counts them."""
        return super().explain(self._name_parameters(error))

    def _name_parameters(self, error: BaseException) -> BaseException:
        model = self.model
        found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        if not isinstance(error, RuntimeError) or found is None or not isinstance(model, DistributedDataParallel):
            return error
        names = [name.removeprefix("module.module.") for name, value in model.named_parameters() if value.requires_grad]
        unused = [names[int(index)] for index in found.group(1).split()]
        shown = ", ".join(unused[:10]) + (f" and {len(unused) - 10} more" if len(unused) > 10 else "")
        better = RuntimeError(
            f"These parameters got no gradient in the last training step, so the processes cannot average it: {shown}."
            " Use them in `training_step`, or freeze them (`requires_grad_(False)`), or type:"
            " strategy='ddp_find_unused_parameters_true'"
        )
        return better.with_traceback(error.__traceback__)


def _is_a(thing: object, name: str) -> bool:
    """Whether something is of a class of torch's whose module is slow to import, and warns."""
    return any(kind.__name__ == name and kind.__module__.startswith("torch.") for kind in type(thing).__mro__)


def _trainable(module: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in module.parameters()]


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _broadcast_state(module: nn.Module) -> None:
    """Give all processes the parameters and buffers of rank 0."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor, 0)


def _advise_static_graph(wrapped: DistributedDataParallel) -> None:
    if not wrapped.static_graph and wrapped._get_ddp_logging_data().get("can_set_static_graph"):  # type: ignore[no-untyped-call]
        rank_zero_info(
            "The graph of this model was the same in every step; strategy=DDPStrategy(static_graph=True) saves time."
        )
