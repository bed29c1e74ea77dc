"""ZeRO, by the package deepspeed: optimizer states, gradients and parameters are divided between the processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulmen.errors import CheckpointError, MisconfigurationException
from fulmen.extras import need
from fulmen.fabric import distributed
from fulmen.fabric.errors import PlanError, PluginTypeError, UnavailableError
from fulmen.fabric.precision import DeepSpeedPrecision, Precision
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.integrations import deepspeed_checkpoint as files
from fulmen.integrations import deepspeed_config as settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fulmen.fabric.accelerators import Accelerator
    from fulmen.fabric.environments import ClusterEnvironment

__all__ = ["DeepSpeedStrategy"]

F = TypeVar("F", bound=Callable[..., Any])


class DeepSpeedStrategy(ParallelStrategy):
    """Trains in an engine of DeepSpeed, which divides what training holds in memory between the processes.

    Args:
        accelerator: Kind of the devices; None is filled in when the plan is made.
        zero_optimization: Whether anything is divided.
        stage: 1 divides the optimizer's state, 2 the gradients too, 3 the parameters too; 0 nothing.
        remote_device: Where parameters are made in stage 3: "cpu", "nvme"; None for the device.
        offload_optimizer: Whether the optimizer's state is in the memory of the host, and steps there.
        offload_parameters: Whether parameters are in the memory of the host (stage 3).
        offload_params_device: "cpu" or "nvme", for parameters.
        nvme_path: Folder on a fast disk, for "nvme".
        params_buffer_count: Buffers for parameters on their way.
        params_buffer_size: Elements of such a buffer.
        max_in_cpu: Parameters kept in the memory of the host with "nvme".
        offload_optimizer_device: "cpu" or "nvme", for the optimizer's state.
        optimizer_buffer_count: Buffers for optimizer states on their way.
        block_size: Bytes of a block of asynchronous input and output.
        queue_depth: Its depth.
        single_submit: Whether requests are submitted one by one.
        overlap_events: Whether requests are submitted and awaited at once.
        thread_count: Its threads.
        pin_memory: Whether memory of the host is pinned.
        sub_group_size: Parameters that step at once in stage 3.
        contiguous_gradients: Whether gradients are copied to one buffer.
        overlap_comm: Whether gradients are exchanged during the backward pass.
        allgather_partitions: Whether parameters are gathered at once rather than broadcast one by one.
        reduce_scatter: Whether each process gets its part of the gradients only.
        allgather_bucket_size: Elements gathered at once.
        reduce_bucket_size: Elements reduced at once.
        zero_allow_untested_optimizer: Whether any optimizer is allowed.
        logging_batch_size_per_gpu: Batch size of a process, for DeepSpeed's messages; "auto" takes it from the loader.
        config: DeepSpeed's configuration as a dict or a JSON file, in the place of the arguments above; also by the
            variable PL_DEEPSPEED_CONFIG_PATH.
        logging_level: Of DeepSpeed's messages.
        parallel_devices: The devices of this machine; None is filled in when the plan is made.
        cluster_environment: Where ranks and addresses come from; None is filled in when the plan is made.
        loss_scale: Fixed scale of the loss in float16; 0 adapts it.
        initial_scale_power: The first scale is 2 to this power.
        loss_scale_window: Steps without overflow after which the scale is doubled.
        hysteresis: Overflows after which it is halved.
        min_loss_scale: Its least value.
        partition_activations: Whether checkpointed activations are divided.
        cpu_checkpointing: Whether they are kept on the host.
        contiguous_memory_optimization: Whether they are copied to one buffer.
        synchronize_checkpoint_boundary: Whether the device is waited for at each of them.
        load_full_weights: Whether `ckpt_path` may be a single file, of which the weights are loaded.
        precision_plugin: A `DeepSpeedPrecision`; None for 32 bit.
        process_group_backend: "nccl", "gloo", ...; None for the default of the devices.
        timeout: After which an exchange between processes fails.
        exclude_frozen_parameters: Whether checkpoints leave out parameters that are not trained.

    Raises:
        UnavailableError: deepspeed is not installed.
        PlanError: A configuration that cannot work.
    """

    strategy_name: ClassVar[str] = "deepspeed"
    DEEPSPEED_ENV_VAR: ClassVar[str] = settings.PATH_VARIABLE

    config: dict[str, Any]
    remote_device: str | None
    load_full_weights: bool
    exclude_frozen_parameters: bool
    loss_scale: float
    initial_scale_power: int
    loss_scale_window: int
    hysteresis: int
    min_loss_scale: int

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        zero_optimization: bool = True,
        stage: int = 2,
        remote_device: str | None = None,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        offload_params_device: str = "cpu",
        nvme_path: str = "/local_nvme",
        params_buffer_count: int = 5,
        params_buffer_size: int = 100_000_000,
        max_in_cpu: int = 1_000_000_000,
        offload_optimizer_device: str = "cpu",
        optimizer_buffer_count: int = 4,
        block_size: int = 1048576,
        queue_depth: int = 8,
        single_submit: bool = False,
        overlap_events: bool = True,
        thread_count: int = 1,
        pin_memory: bool = False,
        sub_group_size: int = 1_000_000_000_000,
        contiguous_gradients: bool = True,
        overlap_comm: bool = True,
        allgather_partitions: bool = True,
        reduce_scatter: bool = True,
        allgather_bucket_size: int = 200_000_000,
        reduce_bucket_size: int = 200_000_000,
        zero_allow_untested_optimizer: bool = True,
        logging_batch_size_per_gpu: Literal["auto"] | int | None = "auto",
        config: str | Path | dict[str, Any] | None = None,
        logging_level: int = logging.WARNING,
        parallel_devices: Sequence[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        loss_scale: float = 0,
        initial_scale_power: int = 16,
        loss_scale_window: int = 1000,
        hysteresis: int = 2,
        min_loss_scale: int = 1,
        partition_activations: bool = False,
        cpu_checkpointing: bool = False,
        contiguous_memory_optimization: bool = False,
        synchronize_checkpoint_boundary: bool = False,
        load_full_weights: bool = False,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = distributed.DEFAULT_TIMEOUT,
        exclude_frozen_parameters: bool = False,
    ) -> None:
        given = dict(locals())  # so that the names of DeepSpeed's settings stand here only once
        _check_package()
        super().__init__(accelerator, None, cluster_environment, None, precision_plugin, process_group_backend, timeout)
        self._given = given
        self._setup_config(given)
        self.parallel_devices = parallel_devices
        self._engine: Any = None
        self._engines: list[Any] = []
        self._trains = False

    def _setup_config(self, given: Mapping[str, Any]) -> None:
        of_user = settings.read(given["config"])
        self.config = settings.from_arguments(given) if of_user is None else of_user
        for name in ("remote_device", "load_full_weights", "exclude_frozen_parameters", *settings.LOSS_SCALE):
            setattr(self, name, given[name])
        self.needs_equal_batches = self.zero_stage_3  # type: ignore[misc]  # a forward gathers parameters then

    # Settings

    @property
    def is_distributed(self) -> bool:
        """Yes."""
        return True

    @property
    def zero_stage_3(self) -> bool:
        """Whether parameters are divided."""
        return bool(self.config.get("zero_optimization", {}).get("stage") == 3)

    @property
    def deepspeed_engine(self) -> Any:
        """What trains; None before it is made."""
        return self._engine

    @property
    def handles_gradient_accumulation(self) -> bool:
        """The engine has to know the number of batches in a window when it is made."""
        return True

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The engine reads its checkpoints."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The engine reads the optimizer's state."""
        return False

    @classmethod
    def precision_for(cls, name: str) -> Precision:
        """The precision of that name for an engine."""
        return DeepSpeedPrecision(name)

    @property
    def precision_plugin(self) -> Precision:
        """In which precision the engine computes."""
        if self._precision_plugin is None:
            self._precision_plugin = DeepSpeedPrecision("32-true")
        return self._precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        if precision_plugin is not None and not isinstance(precision_plugin, DeepSpeedPrecision):
            raise PluginTypeError(
                f"DeepSpeedStrategy works with a DeepSpeedPrecision, got {precision_plugin!r}. Type:"
                " precision='bf16-mixed', or plugins=DeepSpeedPrecision('bf16-mixed')",
                subject=precision_plugin,
            )
        self._precision_plugin = precision_plugin

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The devices of this machine."""
        return self._parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, devices: Sequence[torch.device] | None) -> None:
        if devices is not None:
            _check_devices(list(devices))
        self._parallel_devices = None if devices is None else list(devices)

    def setup_environment(self) -> None:
        """Make this process ready, and let DeepSpeed use its process group."""
        super().setup_environment()
        need("deepspeed.utils").logger.setLevel(self._given["logging_level"])
        need("deepspeed").init_distributed(
            dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False
        )

    # New modules

    def module_init_context(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Context in which new modules are on the device; in stage 3 their parameters are divided at once."""
        context = super().module_init_context(empty_init)
        return self._dividing(context) if self.zero_stage_3 else context

    @contextmanager
    def _dividing(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        init = need("deepspeed").zero.Init(remote_device=self.remote_device, config_dict_or_path=self._engine_config())
        with context, init:
            yield

    def model_to_device(self) -> None:
        """Nothing: the engine does so."""

    # The engine

    def _engine_config(self, **more: Any) -> dict[str, Any]:
        precision: Any = self.precision_plugin
        return settings.complete({**self.config, **more}, precision.engine_config, vars(self))

    def init_deepspeed(self) -> None:
        """Make the engine of the connected module: with its optimizer in a fit, else to evaluate."""
        trainer = self.lightning_module.trainer
        if trainer.state.fn == "fit":
            config = _of_trainer(trainer, self.config, self._given["logging_batch_size_per_gpu"])
            self._make_engine(self.model, self.optimizers, self._engine_config(**config))
        else:
            self._make_engine(self.model, [], _without_optimizer(self._engine_config()))
        self.model = self._engine

    def _make_engine(self, module: nn.Module, optimizers: list[Optimizer], config: dict[str, Any]) -> Any:
        if len(optimizers) > 1:
            raise MisconfigurationException(
                f"DeepSpeed trains with one optimizer, and there are {len(optimizers)}. Put the parameters into groups"
                " of one optimizer: torch.optim.Adam([{'params': ..., 'lr': ...}, {'params': ...}])",
                subject=optimizers,
            )
        self._trains = bool(optimizers) or "optimizer" in config
        if not self._trains and not self.zero_stage_3:
            config = {name: value for name, value in config.items() if name not in ("zero_optimization", "scheduler")}
        self._engine, *_ = need("deepspeed").initialize(
            model=module,
            optimizer=optimizers[0] if optimizers else None,
            model_parameters=[parameter for parameter in module.parameters() if parameter.requires_grad],
            config=config,
            dist_init_required=False,
        )
        self._engines.append(self._engine)
        return self._engine

    def _engine_of(self, module: nn.Module | None) -> Any:
        """The engine of a module that a loop of the user's own gives.

        Raises:
            RuntimeError: Nothing was set up.
            ValueError: Of several engines none was given.
        """
        if not self._engines:
            raise RuntimeError("Nothing was set up yet. Type first: model, optimizer = fabric.setup(model, optimizer)")
        if module is None and len(self._engines) > 1:
            raise ValueError(
                f"{len(self._engines)} models were set up, each with an engine of DeepSpeed. Say which computes the"
                " gradients: fabric.backward(loss, model=model)"
            )
        return next((engine for engine in self._engines if module in (engine, engine.module)), self._engine)

    def prepare_model(self, trainer: Any) -> None:
        """Make the engine, unless an optimizer has to be made first."""
        if trainer.state.fn != "fit":
            self.init_deepspeed()

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizer, and the engine with it."""
        super().setup_optimizers(trainer)
        self.init_deepspeed()

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> nn.Module:
        """Make an engine of a module that is not trained."""
        return self.setup_module_and_optimizers(module, [], None, move_to_device)[0]

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[Optimizer], scheduler: Any = None, move_to_device: bool = True
    ) -> tuple[nn.Module, list[Optimizer], Any]:
        """Make an engine of a module and its optimizer."""
        module = self.precision_plugin.convert_module(module)
        for optimizer in optimizers:
            self.precision_plugin.check_optimizer(optimizer)
        return self._make_engine(module, optimizers, self._engine_config()), optimizers, scheduler

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Not possible alone.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "DeepSpeed makes one thing of a module and its optimizer. Type: model, optimizer = fabric.setup(model,"
            " optimizer)"
        )

    # Steps

    def wrap_step(self, fn: F, training: bool = False) -> F:
        """A step of the user's as the forward of the engine: in training, and wherever parameters are divided."""
        if self._engine is None or not (training or self.zero_stage_3):
            return fn
        return partial(self._in_engine, fn)  # type: ignore[return-value]

    def _in_engine(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The engine calls its module, which has another forward for the time until the step begins."""
        module = self.lightning_module

        def forward(*args: Any, **kwargs: Any) -> Any:
            del module.forward
            return step(*args, **kwargs)

        module.forward = forward
        try:
            return self._engine(*args, **kwargs)
        finally:
            vars(module).pop("forward", None)

    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, model: Any = None, **kwargs: Any
    ) -> Any:
        """Compute the gradients; the engine is told whether the window closes with them."""
        if "backward" in self._bound:
            module = self.lightning_module
            closes = not module.automatic_optimization or module.trainer.fit_loop.closes
            self._engine.set_gradient_accumulation_boundary(closes)
            kwargs["scale_wrt_gas"] = False  # the loop has divided the loss by the size of the window
            return super().backward(closure_loss, optimizer, *args, **kwargs)
        return super().backward(closure_loss, optimizer, *args, model=self._engine_of(model), **kwargs)

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, model: Any = None, **kwargs: Any
    ) -> Any:
        """Update the parameters with the engine."""
        if "optimizer_step" in self._bound:
            return super().optimizer_step(optimizer, closure, model, **kwargs)
        engines = [engine for engine in self._engines if optimizer in (engine.optimizer, engine.client_optimizer)]
        return super().optimizer_step(optimizer, closure, engines[0] if engines else self._engine, **kwargs)

    @contextmanager
    def _within_window(self, engine: Any) -> Iterator[None]:
        engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            engine.set_gradient_accumulation_boundary(True)

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which the engine adds gradients up: for all but the last batch of a window."""
        if "backward" in self._bound:
            return nullcontext()  # a Trainer's windows are told by `backward`
        return self._within_window(self._engine_of(module)) if enabled else nullcontext()

    def in_step(self, batches: Iterator[Any], num_batches: int | float) -> Iterator[Any]:
        """The batches, if all processes have equally many: in stage 3 a forward is an exchange.

        Raises:
            MisconfigurationException: They have not, and would wait for one another.
        """
        counts = distributed.all_gather_object(num_batches, name="number of batches")
        if len(set(counts)) == 1:
            return batches
        raise MisconfigurationException(
            f"With ZeRO stage 3 all processes have to evaluate equally many batches, and theirs are {counts}, by rank."
            " Type: limit_val_batches (limit_test_batches, limit_predict_batches)"
            f"={int(min(counts))}, or strategy='fsdp', or 'deepspeed_stage_2'",
            subject=counts,
        )

    def any_batches(self, has_batches: bool) -> bool:
        """An evaluation is run on all processes if there are batches for any."""
        return self.reduce_boolean_decision(has_batches, all=False)

    def clip_gradients_norm(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Not possible: the engine clips.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "The engine of DeepSpeed clips by itself. Type:"
            f" DeepSpeedStrategy(config={{'gradient_clipping': {max_norm}, ...}})"
        )

    def clip_gradients_value(self, module: nn.Module, optimizer: Optimizer, clip_val: float | int) -> None:
        """Not possible: DeepSpeed clips by norm.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "DeepSpeed does not clip by value. Clip by norm: DeepSpeedStrategy(config={'gradient_clipping': ...})"
        )

    # State

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights; nothing in stage 3, where the engine saves the parts."""
        return {} if self.zero_stage_3 else super().lightning_module_state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing: the engine saves it."""
        return {}

    def load_optimizer_state(self, optimizer: Optimizer, state: Any) -> None:
        """Nothing: the engine has loaded it."""

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load whole tensors; nothing where the engine has loaded its parts."""
        self.load_module_state_dict(self.lightning_module, checkpoint["state_dict"], strict)

    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """Nothing: the engine saves it."""
        return {}

    def load_module_state_dict(self, module: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load whole tensors; where the engine saved and loaded the parts there are none."""
        if state_dict:
            files.load_whole(self._engine, module, state_dict, strict)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint: a folder to which each process adds its part.

        Args:
            checkpoint: What is written beside the state of the engine.
            filepath: Where to.
            storage_options: Not possible.

        Raises:
            TypeError: `storage_options`.
        """
        if storage_options is not None:
            raise TypeError(
                f"DeepSpeed writes its checkpoints itself and takes no `storage_options`, got {storage_options!r}."
            )
        files.save(self, self._engine, checkpoint, self.broadcast(Path(filepath)), self.exclude_frozen_parameters)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; the engine takes its state from it.

        Args:
            checkpoint_path: A folder that DeepSpeed wrote, or with `load_full_weights` a single file.
            weights_only: True is refused for a folder, in which there are objects of DeepSpeed's.

        Raises:
            CheckpointError: It is neither.
        """
        if not files.is_one(checkpoint_path):
            if not self.load_full_weights:
                raise CheckpointError(
                    f"{str(checkpoint_path)!r} is not a checkpoint of DeepSpeed (a folder). For the weights of a single"
                    " file type: DeepSpeedStrategy(load_full_weights=True)",
                    path=checkpoint_path,
                )
            return super().load_checkpoint(checkpoint_path, weights_only)
        module = self.lightning_module
        strict = module is None or module.strict_loading
        if not self._trains:
            return files.read(checkpoint_path, weights_only)
        checkpoint = files.load(self._engine, checkpoint_path, weights_only, strict)
        if module is None:
            return checkpoint
        return {"state_dict": {}, "optimizer_states": [{} for _ in self.optimizers], **checkpoint}

    def teardown(self) -> None:
        """End the run; the engine goes."""
        self.model, self._engine = self.lightning_module, None
        super().teardown()
        while self._engines:
            self._engines.pop().destroy()

    def _to_cpu(self) -> None:
        if not self.zero_stage_3:  # a part of a parameter is of no use there
            self.lightning_module.cpu()


def _check_package() -> None:
    try:
        need("deepspeed")
    except ModuleNotFoundError as error:
        raise UnavailableError(str(error), subject="deepspeed") from error


def _check_devices(devices: list[torch.device]) -> None:
    kind = need("deepspeed.accelerator").get_accelerator().device_name()
    if any(device.type != kind for device in devices):
        raise UnavailableError(
            f"DeepSpeed computes on {kind!r} here, and was given {', '.join(map(str, devices))}. Type:"
            f" accelerator={kind!r}, or another strategy",
            subject=devices,
        )


def _of_trainer(trainer: Any, config: Mapping[str, Any], batch_size: Any) -> dict[str, Any]:
    """What a Trainer says about windows, clipping and batches, as DeepSpeed calls it."""
    if "gradient_accumulation_steps" in config:
        raise PlanError(
            "The DeepSpeed configuration has 'gradient_accumulation_steps'. Leave it out, and type:"
            f" Trainer(accumulate_grad_batches={config['gradient_accumulation_steps']})",
            subject=config,
        )
    result: dict[str, Any] = {"gradient_accumulation_steps": trainer.accumulate_grad_batches}
    if "train_micro_batch_size_per_gpu" not in config and batch_size is not None:
        result["train_micro_batch_size_per_gpu"] = _size_of_batches(trainer) if batch_size == "auto" else batch_size
    if trainer.gradient_clip_val:
        if "gradient_clipping" in config:
            raise PlanError(
                f"Gradients would be clipped twice: by Trainer(gradient_clip_val={trainer.gradient_clip_val}), and by"
                f" 'gradient_clipping': {config['gradient_clipping']} in the DeepSpeed configuration. Leave one out.",
                subject=config,
            )
        if str(trainer.gradient_clip_algorithm or "norm") != "norm":
            raise PlanError(
                "DeepSpeed clips gradients by norm only. Leave gradient_clip_algorithm out, or type: strategy='fsdp'",
                subject=trainer.gradient_clip_algorithm,
            )
        result["gradient_clipping"] = trainer.gradient_clip_val
    return result


def _size_of_batches(trainer: Any) -> int:
    """The batch size of the first training loader given to `fit`; 1 where it does not say one, or is made later."""
    loaders = trainer.data.given.get("train")
    while isinstance(loaders, list | tuple | dict) and loaders:
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders))
    size = getattr(getattr(loaders, "batch_sampler", None), "batch_size", None)
    return size if isinstance(size, int) else 1


def _without_optimizer(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of an engine that evaluates."""
    return {name: value for name, value in config.items() if name not in ("optimizer", "scheduler")}
