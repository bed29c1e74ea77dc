"""Fully sharded data parallel: every process keeps a part of each parameter (torch's `fully_shard`, FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import enable_wrap
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from fulmen.checkpoint.sharded import is_sharded, split
from fulmen.fabric import distributed
from fulmen.fabric.precision import FSDPPrecision, Precision
from fulmen.fabric.strategies import fsdp_settings as settings
from fulmen.fabric.strategies import sharding
from fulmen.fabric.strategies.clipping import clip_shards
from fulmen.fabric.strategies.fsdp_root import Root
from fulmen.fabric.strategies.fsdp_shard import checkpoint_activations, shard
from fulmen.fabric.strategies.fsdp_units import Policy, choose, choose_units
from fulmen.fabric.strategies.mesh_fill import fill
from fulmen.fabric.strategies.parallel import ParallelStrategy
from fulmen.ranks import rank_zero_deprecation

if TYPE_CHECKING:
    from torch.distributed.fsdp import CPUOffload, MixedPrecision, MixedPrecisionPolicy, OffloadPolicy

    from fulmen.checkpoint.store import CheckpointIO
    from fulmen.fabric.accelerators import Accelerator
    from fulmen.fabric.environments import ClusterEnvironment

__all__ = ["FSDPStrategy"]

F = TypeVar("F", bound=Callable[..., Any])


class FSDPStrategy(ParallelStrategy):
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
        **kwargs: `ignored_modules`, `ignored_states`, `param_init_fn` as in FSDP1; `reshard_after_forward`,
            `shard_placement_fn`, `mp_policy`, `offload_policy` as in `fully_shard`.

    Raises:
        ValueError: An unknown `sharding_strategy` or `state_dict_type`.
        TypeError: An unknown argument, or one of the wrong kind.
    """

    strategy_name: ClassVar[str] = "fsdp"
    fills_meta_modules: ClassVar[bool] = True
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
        **kwargs: Any,
    ) -> None:
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
        self._ours, self._theirs = settings.split_arguments(kwargs)
        self.mixed_precision = self._theirs.pop("mp_policy", mixed_precision)
        self.cpu_offload = self._theirs.pop("offload_policy", cpu_offload)
        self._policy = auto_wrap_policy
        self._checkpointing_policy = settings.checkpointing_policy_of(
            activation_checkpointing_policy, activation_checkpointing
        )
        self._marked: list[nn.Module] = []
        self._sharded: list[nn.Module] = []
        self._shard_of: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameters before and after sharding
        self._root: Root | None = None

    # Settings

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
    def restore_checkpoint_after_setup(self) -> bool:
        """A checkpoint is loaded into the shards."""
        return True

    @property
    def allows_inference_mode(self) -> bool:  # type: ignore[override]
        """No: the memory into which parameters are gathered is used again for training."""
        return False

    def setup_distributed(self) -> None:
        """Make the process group; with offloaded parameters also one for the CPU, where gradients are clipped then."""
        is_offloaded = type(settings.offload_of(self.cpu_offload, self.root_device)).__name__ == "CPUOffloadPolicy"
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
        self._root = self._shard(self.model)
        if not self.lightning_module.automatic_optimization:
            # gradients are computed in the midst of a step then; the loop asks what is there
            self.pre_backward = self._root.leave  # type: ignore[method-assign,assignment]
            self.post_backward = self._back_in_step  # type: ignore[method-assign]
            self.optimizer_step = self._step_and_go_on  # type: ignore[method-assign]

    def _shard(self, module: nn.Module) -> Root:
        """The module as a root; it is sharded unless it was before."""
        clip_shards(self.precision_plugin)
        root = Root.of(module)
        if root is None:
            _refuse_fsdp1(module)
            before = dict(module.named_parameters())
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
            for name, parameter in module.named_parameters():
                self._shard_of[before[name]] = parameter
            root = Root(module)
        self._sharded.append(module)
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

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Let an optimizer that was made before its module was sharded have the shards.

        Raises:
            RuntimeError: It has a state of whole parameters already, or parameters of a module that is not sharded.
        """
        optimizer = super().setup_optimizer(optimizer)
        for group in optimizer.param_groups:
            group["params"] = [self._shard_of.get(parameter, parameter) for parameter in group["params"]]  # type: ignore[no-untyped-call]
        if stale := [parameter for parameter in optimizer.state if parameter in self._shard_of]:
            raise RuntimeError(
                f"{type(optimizer).__name__} has the state of {len(stale)} parameters from before they were sharded."
                " Set up module and optimizer first, then load the state: fabric.load(path, {...})"
            )
        return optimizer

    def copy_for_average(self, module: nn.Module) -> nn.Module:
        """The names and shards of a module, which may be copied; a sharded module itself may not."""
        return sharding.copy_of_shards(module)

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
        output = ParallelStrategy.optimizer_step(self, optimizer, closure, model, **kwargs)
        self._back_in_step(output)
        return output

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which gradients stay, as a whole, on this process: for all but the last batch of a window."""
        return _without_sync(module) if enabled and isinstance(module, FSDPModule) else nullcontext()

    def block_backward_sync(self) -> AbstractContextManager[Any]:
        """As `no_backward_sync`, for the connected module."""
        return self.no_backward_sync(self.model)

    def in_step(self, batches: Iterable[Any], num_batches: int | float) -> Iterator[Any]:
        """Batches of an evaluation, in which all processes have to gather parameters equally often.

        A process that has run out of batches goes on taking part in the steps of the others, without calling anything
        of the user's.

        Args:
            batches: Those of this process.
            num_batches: Their number; infinity if it is not known.
        """
        root = self._root
        assert root is not None
        counts = distributed.all_gather_object(num_batches, name="number of batches")
        is_known = float("inf") not in counts
        if is_known and len(set(counts)) == 1:
            yield from batches
            return
        own = iter(batches)
        for index in count():
            batch = next(own, _NO_BATCH)
            has_one = batch is not _NO_BATCH
            running = [index < number for number in counts] if is_known else self._votes(has_one)
            if running[self.global_rank] != has_one:
                raise RuntimeError(
                    f"The evaluation data of rank {self.global_rank} have {num_batches} batches by their length, and"
                    f" {'ended before' if running[self.global_rank] else 'have more'}. Mend its `__len__`."
                )
            if not any(running):
                return
            leader = running.index(True)
            if not has_one:
                root.follow(leader, self.root_device)
                continue
            with nullcontext() if all(running) else root.lead(leader, self.root_device):
                yield batch

    def any_batches(self, has_batches: bool) -> bool:
        """An evaluation is run on all processes if there are batches for any."""
        return self.reduce_boolean_decision(has_batches, all=False)

    def _votes(self, vote: bool) -> list[bool]:
        votes = self.all_gather(torch.tensor(vote, device=self.root_device))
        return [bool(given) for given in votes.tolist()]

    # State

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The state of the connected module: whole on rank 0, or the shards of each process."""
        return self.get_module_state_dict(self.lightning_module)

    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        """The state of a sharded module; as `lightning_module_state_dict`."""
        state = module.state_dict()
        return state if self._saves_shards else sharding.whole_state(state, self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load "state_dict" of a checkpoint into the connected module: each process takes its part."""
        self.load_module_state_dict(self.lightning_module, checkpoint["state_dict"], strict)

    def load_module_state_dict(self, module: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load whole tensors, the same on all processes, or shards into a sharded module."""
        sharding.load_module(module, state_dict, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer: whole on rank 0 as on one device, or the shards under the parameters' names."""
        if self._saves_shards:
            return sharding.by_name(optimizer, self._names())
        return sharding.whole_optimizer_state(optimizer, self.is_global_zero)

    def load_optimizer_state(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Load a state, whole or of shards, into an optimizer of sharded parameters."""
        sharding.load_optimizer(optimizer, state, self._names())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint: as one file on rank 0, or as a directory to which each process adds its part.

        Args:
            checkpoint: What is written.
            filepath: Where to.
            storage_options: Passed on to the `checkpoint_io`, which takes none for a directory.

        Raises:
            TypeError: `storage_options` for a directory.
            IsADirectoryError: There is a directory of that name which is no checkpoint.
        """
        if not self._saves_shards:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        if storage_options is not None:
            raise TypeError(
                f"A sharded checkpoint takes no `storage_options`, and was given {storage_options!r}. Leave them out,"
                " or type: FSDPStrategy(state_dict_type='full')"
            )
        state, meta = split(checkpoint)
        self.checkpoint_io.save_sharded(filepath, state, meta)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; of a directory each process reads its part, after the module has been sharded.

        Args:
            checkpoint_path: Where it is.
            weights_only: As in `torch.load`; None for its default.
        """
        if not is_sharded(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only)
        shards = {name: value for module in self._sharded for name, value in module.state_dict().items()}
        like = {name: value for name, value in shards.items() if isinstance(value, Tensor)}
        return self.checkpoint_io.read_sharded(checkpoint_path, like, weights_only)

    def _names(self) -> dict[nn.Parameter, str]:
        return sharding.named_parameters_of(iter(self._sharded))

    @property
    def _saves_shards(self) -> bool:
        return self._state_dict_type == "sharded"

    def teardown(self) -> None:
        """End the run. The module stays sharded, on its devices: a further run goes on with it."""
        super().teardown()
        for name in ("pre_backward", "post_backward", "optimizer_step"):
            vars(self).pop(name, None)

    def _to_cpu(self) -> None:
        """Shards stay where their process group is."""


_NO_BATCH = object()


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


def _refuse_fsdp1(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, FullyShardedDataParallel):
            raise TypeError(
                f"{name or type(part).__name__!r} is wrapped by FullyShardedDataParallel (FSDP1). FSDPStrategy shards"
                " with FSDP2 (`fully_shard`): leave the wrapping to it, or call `fully_shard` in `configure_model`."
            )
