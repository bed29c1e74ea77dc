"""Fully sharded data parallel: every process keeps a part of each parameter (torch's `fully_shard`, FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, ShardingStrategy
from torch.distributed.fsdp.wrap import enable_wrap
from torch.optim import Optimizer

from fulmen.fabric import distributed
from fulmen.fabric.precision import FSDPPrecision, Precision
from fulmen.fabric.strategies import fsdp_settings as settings
from fulmen.fabric.strategies.fsdp_root import Root
from fulmen.fabric.strategies.fsdp_shard import checkpoint_activations, shard
from fulmen.fabric.strategies.fsdp_units import Policy, choose, choose_units
from fulmen.fabric.strategies.mesh_fill import fill
from fulmen.fabric.strategies.sharded import ShardedStrategy, refuse_fsdp1
from fulmen.ranks import rank_zero_deprecation

if TYPE_CHECKING:
    from torch.distributed.fsdp import CPUOffload, MixedPrecision, MixedPrecisionPolicy, OffloadPolicy

    from fulmen.checkpoint.store import CheckpointIO
    from fulmen.fabric.accelerators import Accelerator
    from fulmen.fabric.environments import ClusterEnvironment

__all__ = ["FSDPStrategy"]

F = TypeVar("F", bound=Callable[..., Any])


class FSDPStrategy(ShardedStrategy):
    """Every process keeps a part of each parameter, of its gradient and of the optimizer's state.

    The whole parameters of a unit (a block of the model) are gathered for its forward and its backward pass only. The
    arguments are those of FSDP1; what runs is FSDP2, `torch.distributed.fsdp.fully_shard`, on GPUs and on CPUs.

    Args:
        accelerator: Kind of the devices; None is filled in when the plan is made.
        parallel_devices: The devices of this machine; None is filled in when the plan is made.
        cluster_environment: Where ranks and addresses come from; None is filled in when the plan is made.
        checkpoint_io: Writes and reads checkpoints; None for files written by `torch.save`.
        precision_plugin: A `FSDPPrecision`; None for 32 bit.
        process_group_backend: "gloo", "nccl", ...; None for the default of the devices.
        timeout: After which an exchange between processes fails.
        cpu_offload: Whether parameters are on the CPU between steps: a bool, FSDP1's `CPUOffload`, or an
            `OffloadPolicy`.
        mixed_precision: A `MixedPrecisionPolicy`, or FSDP1's `MixedPrecision`; None for that of the precision.
        auto_wrap_policy: Which modules are units: a set of classes, or a policy of FSDP1. None for the repeated blocks
            in the model's `nn.ModuleList`s. What is in no unit makes one with the model itself.
        activation_checkpointing: Deprecated: a class or several of `activation_checkpointing_policy`.
        activation_checkpointing_policy: Which modules compute their activations again in the backward pass.
        sharding_strategy: "FULL_SHARD"; "SHARD_GRAD_OP" keeps parameters whole between forward and backward;
            "HYBRID_SHARD" and "_HYBRID_SHARD_ZERO2" do the same within a machine and repeat the shards on each;
            "NO_SHARD" keeps everything whole.
        state_dict_type: "full" saves one file, like that of one device; "sharded" a directory, each process its part.
        device_mesh: The number of copies and of shards in each, for hybrid sharding; or a `DeviceMesh`.
        precision: The `precision_plugin`, under the name it has for `Fabric`.
        **kwargs: `ignored_modules`, `ignored_states`, `param_init_fn` as in FSDP1; `reshard_after_forward`,
            `shard_placement_fn`, `mp_policy`, `offload_policy` as in `fully_shard`.

    Raises:
        ValueError: An unknown `sharding_strategy` or `state_dict_type`.
        TypeError: An unknown argument, or one of the wrong kind.
    """

    strategy_name: ClassVar[str] = "fsdp"
    wraps_in_place: ClassVar[bool] = True
    needs_equal_batches: ClassVar[bool] = True

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: Sequence[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = distributed.DEFAULT_TIMEOUT,
        cpu_offload: bool | CPUOffload | OffloadPolicy | None = None,
        mixed_precision: MixedPrecision | MixedPrecisionPolicy | None = None,
        auto_wrap_policy: Policy | None = None,
        activation_checkpointing: type[nn.Module] | list[type[nn.Module]] | None = None,
        activation_checkpointing_policy: Policy | None = None,
        sharding_strategy: str | ShardingStrategy = "FULL_SHARD",
        state_dict_type: Literal["full", "sharded"] = "full",
        device_mesh: tuple[int, ...] | DeviceMesh | None = None,
        precision: Precision | None = None,
        **kwargs: Any,
    ) -> None:
        precision_plugin = precision_plugin if precision is None else precision
        _check_precision(precision_plugin)
        super().__init__(
            accelerator,
            parallel_devices,
            cluster_environment,
            checkpoint_io,
            precision_plugin,
            process_group_backend,
            timeout,
        )
        if state_dict_type not in ("full", "sharded"):
            raise ValueError(f"state_dict_type={state_dict_type!r} is not known. Type: 'full' or 'sharded'")
        if activation_checkpointing is not None:
            rank_zero_deprecation(
                "FSDPStrategy(activation_checkpointing=...) will go away. Type: activation_checkpointing_policy={...}"
            )
        self.sharding = settings.sharding_of(sharding_strategy)
        self._state_dict_type = state_dict_type
        self._device_mesh = device_mesh
        self.kwargs = kwargs
        self._ours, self._theirs = settings.split_arguments(kwargs)
        self.mixed_precision = self._theirs.pop("mp_policy", mixed_precision)
        self.cpu_offload = self._theirs.pop("offload_policy", cpu_offload)
        self._policy = auto_wrap_policy
        self._checkpointing_policy = settings.checkpointing_policy_of(
            activation_checkpointing_policy, activation_checkpointing
        )
        self._marked: list[nn.Module] = []
        self._root: Root | None = None

    # Settings

    @classmethod
    def get_registered_strategies(cls) -> list[str]:
        """The names under which it is registered."""
        return ["fsdp", "fsdp_cpu_offload"]

    @property
    def is_distributed(self) -> bool:
        """Yes."""
        return True

    @property
    def sharding_strategy(self) -> ShardingStrategy:
        """How parameters are sharded, as FSDP1 calls it."""
        return ShardingStrategy[self.sharding.name]

    @property
    def precision_plugin(self) -> Precision:
        """In which precision the module computes."""
        if self._precision_plugin is None:
            self._precision_plugin = FSDPPrecision("32-true")
        return self._precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        _check_precision(precision_plugin)
        self._precision_plugin = precision_plugin

    @classmethod
    def precision_for(cls, name: str) -> Precision:
        """The precision of that name for sharded modules."""
        return FSDPPrecision(name)

    @property
    def mixed_precision_config(self) -> MixedPrecisionPolicy:
        """In which types parameters are gathered and gradients are reduced."""
        default = self.precision_plugin.mixed_precision_policy  # type: ignore[attr-defined]
        return settings.mixed_precision_of(self.mixed_precision, default)

    @property
    def saves_shards(self) -> bool:
        """Whether a checkpoint is a directory to which each process adds its part."""
        return self._state_dict_type == "sharded"

    @property
    def allows_inference_mode(self) -> bool:  # type: ignore[override]
        """No: the memory into which parameters are gathered is used again for training."""
        return False

    def setup_distributed(self) -> None:
        """Make the process group; with offloaded parameters also one for the CPU, where gradients are clipped then."""
        is_offloaded = isinstance(settings.offload_of(self.cpu_offload, self.root_device), CPUOffloadPolicy)
        if is_offloaded and self.root_device.type == "cuda" and self._process_group_backend is None:
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super().setup_distributed()

    # Modules

    @contextmanager
    def _init_context(self, precision: AbstractContextManager[Any], empty_init: bool | None) -> Iterator[None]:
        """New modules are on the CPU, or without data: each unit is brought to the device when it is sharded."""
        with torch.device("meta" if empty_init else "cpu"), precision:
            yield

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Context of `configure_model`, in which `torch.distributed.fsdp.wrap.wrap(module)` makes a module a unit."""

        def mark(module: nn.Module, **_: Any) -> nn.Module:
            self._marked.append(module)
            return module

        with enable_wrap(wrapper_cls=mark):
            yield

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> nn.Module:
        """Bring a module into the precision and shard it, in place; each unit goes to the device for itself."""
        self._shard(self.precision_plugin.convert_module(module))
        return module

    def model_to_device(self) -> None:
        """Nothing yet: each unit goes to the device when it is sharded."""

    def prepare_model(self, trainer: Any) -> None:
        """Shard the connected module, for a fit and for evaluation alike."""
        self._units = self._root = self._shard(self.model)
        if not self.lightning_module.automatic_optimization:
            # gradients are computed in the midst of a step then; the loop asks what is there
            self.pre_backward = self._root.leave  # type: ignore[method-assign,assignment]
            self.post_backward = self._back_in_step  # type: ignore[method-assign]
            self.optimizer_step = self._step_and_go_on  # type: ignore[method-assign]

    def _shard(self, module: nn.Module) -> Root:
        """The module as a root; it is sharded unless it was before."""
        root, before = Root.of(module), dict(module.named_parameters())
        if root is None:
            refuse_fsdp1(module)
            units = choose_units(module, self._policy, self._marked)
            if self._checkpointing_policy is not None:
                checkpoint_activations(choose(module, self._checkpointing_policy))
            shard(
                module,
                units,
                self.root_device,
                settings.ignored_parameters(module, self._ours),
                self._ours.get("param_init_fn"),
                **self._arguments(),
            )
            fill(module, self.root_device)  # what the user had sharded without data
            root = Root(module)
        self.took_over(module, before)
        return root

    def _arguments(self) -> dict[str, Any]:
        """Those of `fully_shard`."""
        arguments = {
            "mesh": self.sharding.mesh(self._device_mesh, self.root_device.type, self.num_nodes),
            "mp_policy": self.mixed_precision_config,
            "offload_policy": settings.offload_of(self.cpu_offload, self.root_device),
            **self._theirs,
        }
        if self.sharding.reshard_after_forward is not None:
            arguments.setdefault("reshard_after_forward", self.sharding.reshard_after_forward)
        return arguments

    # Steps

    def wrap_step(self, fn: F, training: bool = False) -> F:
        """A step of the user's, led through what FSDP does around a forward."""
        root = self._root
        if root is None:
            return fn
        is_followed = training and self.lightning_module.automatic_optimization
        return partial(root.run if is_followed else root.run_once, fn)  # type: ignore[return-value]

    def _back_in_step(self, closure_loss: Tensor) -> None:
        assert self._root is not None
        self._root.enter()

    def _step_and_go_on(
        self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, model: Any = None, **kwargs: Any
    ) -> Any:
        output = ShardedStrategy.optimizer_step(self, optimizer, closure, model, **kwargs)
        self._back_in_step(output)
        return output

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which gradients stay, as a whole, on this process: for all but the last batch of a window."""
        return _without_sync(module) if enabled and isinstance(module, FSDPModule) else nullcontext()

    def block_backward_sync(self) -> AbstractContextManager[Any]:
        """As `no_backward_sync`, for the connected module."""
        return self.no_backward_sync(self.model)

    def teardown(self) -> None:
        """End the run. The module stays sharded, on its devices: a further run goes on with it."""
        super().teardown()
        for name in ("pre_backward", "post_backward", "optimizer_step"):
            vars(self).pop(name, None)


@contextmanager
def _without_sync(module: FSDPModule) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def _check_precision(precision: Precision | None) -> None:
    if precision is not None and not isinstance(precision, FSDPPrecision):
        raise TypeError(
            f"FSDPStrategy works with a FSDPPrecision, got {precision!r}. Type: precision='bf16-mixed', or"
            " plugins=FSDPPrecision('bf16-mixed')"
        )
