"""Several kinds of parallelism on one mesh of processes: the user says how a module is spread, in `configure_model`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial, wraps
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel as loss_of_shards
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from fulmen.fabric import distributed
from fulmen.fabric.errors import PlanError
from fulmen.fabric.precision import Precision
from fulmen.fabric.strategies.fsdp_root import Root
from fulmen.fabric.strategies.fsdp_uneven import Units
from fulmen.fabric.strategies.mesh_dimensions import Mesh, Size, check_sizes, sizes_for
from fulmen.fabric.strategies.mesh_fill import fill
from fulmen.fabric.strategies.mesh_sync import GradientAverage, copies_of, draw_alike, make_alike
from fulmen.fabric.strategies.sharded import ShardedStrategy, refuse_fsdp1
from fulmen.ranks import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["ModelParallelStrategy"]

F = TypeVar("F", bound=Callable[..., Any])

_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true")


class ModelParallelStrategy(ShardedStrategy):
    """Data and tensor parallel, on a mesh of processes with these two dimensions.

    The module is spread by its author, with the functions of torch (`parallelize_module`, `fully_shard`), in
    `configure_model`, where `self.device_mesh` is the mesh. What is not sharded over the data dimension is repeated
    along it: its gradients are averaged.

    Args:
        data_parallel_size: In how many parts the data are divided; "auto" for the number of machines, or for what
            `tensor_parallel_size` leaves. A pair stands for copies of shards: the dimensions of the mesh are called
            "replicate" and "shard" then.
        tensor_parallel_size: Among how many processes, which all get the same batches, layers are divided; "auto" for
            the devices of a machine, or for what `data_parallel_size` leaves.
        save_distributed_checkpoint: Whether a checkpoint is a directory to which each process adds its part, or one
            file, like that of one device.
        process_group_backend: "gloo", "nccl", ...; None for the default of the devices.
        timeout: After which an exchange between processes fails.
        parallelize_fn: For `Fabric`: takes a module and the mesh, and gives back the module, spread.
        loss_parallel: Whether steps and backward passes run in `torch.distributed.tensor.parallel.loss_parallel`, for
            a cross entropy of logits that are sharded along the classes.

    Raises:
        ValueError: A size that cannot be.
    """

    strategy_name: ClassVar[str] = "model_parallel"
    needs_configure_model: ClassVar[bool] = True

    def __init__(
        self,
        data_parallel_size: int | Literal["auto"] | tuple[int, int] = "auto",
        tensor_parallel_size: int | Literal["auto"] = "auto",
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = distributed.DEFAULT_TIMEOUT,
        parallelize_fn: Callable[[Any, DeviceMesh], nn.Module] | None = None,
        loss_parallel: bool = False,
    ) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        self._sizes: dict[str, Size] = {
            "data_parallel": data_parallel_size,
            "tensor_parallel": tensor_parallel_size,
        }
        check_sizes(self._sizes)
        self._save_distributed_checkpoint = save_distributed_checkpoint
        self._parallelize_fn = parallelize_fn
        self._loss_parallel = loss_parallel
        self._is_in_loss_parallel = False
        self._mesh: Mesh | None = None
        self._root: Root | None = None
        self._averages: MutableMapping[nn.Module, GradientAverage] = WeakIdKeyDictionary()
        self._units_of: MutableMapping[nn.Module, Units] = WeakIdKeyDictionary()
        if loss_parallel:  # the loop asks what is there
            self.backward = self._backward_in_loss_parallel  # type: ignore[method-assign]

    # Processes

    @property
    def is_distributed(self) -> bool:
        """Yes."""
        return True

    @property
    def mesh(self) -> Mesh:
        """The mesh with its dimensions."""
        if self._mesh is None:
            raise RuntimeError(
                "There is no device mesh before the processes have started. Use it in `configure_model`, or after"
                " `fabric.launch()`."
            )
        return self._mesh

    @property
    def device_mesh(self) -> DeviceMesh:
        """The mesh.

        Raises:
            RuntimeError: The processes have not started yet.
        """
        return self.mesh.device_mesh

    @property
    def saves_shards(self) -> bool:
        """Whether a checkpoint is a directory to which each process adds its part."""
        return self._save_distributed_checkpoint

    @property
    def precision_plugin(self) -> Precision:
        """In which precision the module computes."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        if precision_plugin is not None and precision_plugin.precision not in _PRECISIONS:
            raise PlanError(
                f"ModelParallelStrategy does not work with precision={precision_plugin.precision!r}. Type one of:"
                f" {', '.join(_PRECISIONS)}",
                subject=precision_plugin,
            )
        self._precision_plugin = precision_plugin

    def set_world_ranks(self) -> None:
        """Tell the environment the ranks that follow from devices and machines.

        Raises:
            RuntimeError: The sizes of the mesh need another number of processes.
        """
        sizes_for(self._sizes, self.world_size, self.num_nodes)
        super().set_world_ranks()

    def setup_environment(self) -> None:
        """Make this process ready, and the mesh.

        Raises:
            ValueError: Batch norms are to share their statistics: modules that are spread cannot be replaced.
        """
        if self.layer_sync is not None:
            raise PlanError(
                "`sync_batchnorm=True` replaces modules, which cannot be done once they are spread. Type first in"
                " `configure_model`: self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)",
                subject=self.layer_sync,
            )
        super().setup_environment()
        if self._mesh is None:
            sizes = sizes_for(self._sizes, self.world_size, self.num_nodes)
            self._mesh = Mesh(sizes, self.root_device.type)
        draw_alike(self._mesh, self.root_device)
        if self.lightning_module is not None:
            self.lightning_module._device_mesh = self._mesh.device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """How the data are divided: along the dimensions for data. Processes of the others get the same batches."""
        data = self.mesh.data
        return {"num_replicas": data.size(), "rank": data.get_local_rank()}

    def reduce(
        self, tensor: Any, group: dist.ProcessGroup | None = None, reduce_op: Any = "mean", name: str = ""
    ) -> Any:
        """The mean, sum or other reduction of a tensor over the processes with different batches."""
        if group is None and self._mesh is not None:
            group = self._mesh.data.get_group()
        return super().reduce(tensor, group, reduce_op, name)

    # Modules

    @contextmanager
    def _init_context(self, precision: AbstractContextManager[Any], empty_init: bool | None) -> Iterator[None]:
        """New modules are on the device, or without data until they are parallel."""
        with torch.device("meta") if empty_init else self.root_device, precision:
            yield

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> nn.Module:
        """Spread a module with `parallelize_fn`, unless it is, bring it into the precision and to its device.

        Raises:
            TypeError: It is wrapped by FSDP1, or `parallelize_fn` gave no module.
            ValueError: It is spread over a part of the processes only.
        """
        refuse_fsdp1(module)
        before = dict(module.named_parameters())
        if self._parallelize_fn is not None and not _is_spread(module):
            module = self._parallelize_fn(module, self.device_mesh)
            if not isinstance(module, nn.Module):
                raise TypeError(f"`parallelize_fn` has to return the module it was given, got {module!r}.")
        module = self.precision_plugin.convert_module(module)
        if move_to_device:
            self._bring(module)
        self.took_over(module, before)
        self._prepare(module, trains=True)
        self.wraps_in_place = isinstance(module, FSDPModule)  # type: ignore[misc]
        return module

    def model_to_device(self) -> None:
        """Bring the connected module to the device; what has no data yet is filled."""
        self._bring(self.model)

    def _bring(self, module: nn.Module) -> None:
        fill(module, self.root_device)
        module.to(self.root_device)

    def prepare_model(self, trainer: Any) -> None:
        """Make sure that the connected module, which its `configure_model` spread, is the same where it has to be."""
        refuse_fsdp1(self.model)
        self.took_over(self.model, {})
        self._prepare(self.model, trains=trainer.state.fn == "fit")
        self._units = self._units_of[self.model]
        self.needs_equal_batches = bool(self._units.parts)  # type: ignore[misc]
        if isinstance(self.model, FSDPModule):
            self._units = self._root = self._root_of()
        draw_alike(self.mesh, self.root_device)

    def _root_of(self) -> Root:
        """The connected module itself is sharded: its steps run as its forward."""
        if not self.lightning_module.automatic_optimization:
            raise TypeError(
                f"`fully_shard` was called on {type(self.model).__name__} itself, whose steps compute gradients in"
                " their midst (automatic_optimization=False). Call it on the networks within instead."
            )
        return Root.of(self.model) or Root(self.model)

    def _prepare(self, module: nn.Module, trains: bool) -> None:
        if not _is_spread(module):
            names = [dimension.name for dimension in self.mesh.split() if not dimension.divides_data]
            if names:
                rank_zero_warn(
                    f"No parameter of {type(module).__name__} is spread over {', '.join(names)}: these processes will"
                    " all compute the same. In `configure_model`, type: parallelize_module(self.network,"
                    f' self.device_mesh["{names[0]}"], plan)'
                )
        self._units_of[module] = Units(module)
        make_alike(chain(module.parameters(), module.buffers()), self.mesh)
        copies = list(copies_of(module, self.mesh)) if trains else []
        self._stop_averaging(module)
        if copies:
            self._averages[module] = GradientAverage(copies, self.mesh)

    def _stop_averaging(self, module: nn.Module) -> None:
        if (average := self._averages.pop(module, None)) is not None:
            average.close()

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """As for other sharded modules; no single operation updates shards and whole parameters."""
        optimizer = super().setup_optimizer(optimizer)
        _update_one_by_one(optimizer)
        return optimizer

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizers and schedulers; no single operation updates shards and whole parameters."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            _update_one_by_one(optimizer)

    def teardown(self) -> None:
        """End the run. The module stays as it is spread, on its devices: a further run goes on with it."""
        if self.lightning_module is not None:
            self._stop_averaging(self.lightning_module)
        self._root = self._units = None
        super().teardown()

    # Steps

    def wrap_step(self, fn: F, training: bool = False) -> F:
        """A step of the user's, with what a sharded module and a sharded loss need around it."""
        step: Any = fn
        if training and self._root is not None:
            step = partial(self._root.run, step)
        elif not training and self._units is not None and self._units.parts:
            step = partial(self._units.run_once, step)
        return self._in_loss_parallel(step) if self._loss_parallel else step  # type: ignore[no-any-return]

    def _in_loss_parallel(self, step: F) -> F:
        @wraps(step)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._loss_of_shards():
                return step(*args, **kwargs)

        return run  # type: ignore[return-value]

    @contextmanager
    def _loss_of_shards(self) -> Iterator[None]:
        """The context of torch, entered once: its inner end would be the end of all."""
        if self._is_in_loss_parallel:
            yield
            return
        self._is_in_loss_parallel = True
        try:
            with loss_of_shards():
                yield
        finally:
            self._is_in_loss_parallel = False

    def _backward_in_loss_parallel(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, model: Any = None, **kwargs: Any
    ) -> Any:
        with self._loss_of_shards():
            return ShardedStrategy.backward(self, closure_loss, optimizer, *args, model=model, **kwargs)

    def on_validation_start(self) -> None:
        """Evaluation sees the buffers of the first of the processes with copies, as a checkpoint does."""
        make_alike(self.model.buffers(), self.mesh)

    @contextmanager
    def _no_backward_sync(self, module: nn.Module) -> Iterator[None]:
        average = self._averages.get(module)
        sharded = self._units_of[module].roots if module in self._units_of else ()
        if average is not None:
            average.is_on = False
        for root in sharded:
            root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            if average is not None:
                average.is_on = True
            for root in sharded:
                root.set_requires_gradient_sync(True)

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Context in which gradients are not exchanged along the data dimension: for all but the last of a window."""
        return self._no_backward_sync(module) if enabled else nullcontext()

    def block_backward_sync(self) -> AbstractContextManager[Any]:
        """As `no_backward_sync`, for the connected module."""
        return self.no_backward_sync(self.model)


def _is_spread(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def _update_one_by_one(optimizer: Optimizer) -> None:
    """Where an optimizer has shards and whole parameters in a group, see to it that they are not updated at once.

    Raises:
        PlanError: It was told to.
    """
    for number, group in enumerate(optimizer.param_groups):
        kinds = {isinstance(parameter, DTensor) for parameter in group["params"]}
        if len(kinds) < 2:
            continue
        for option in ("fused", "foreach"):
            if group.get(option):
                raise PlanError(
                    f"{type(optimizer).__name__}({option}=True) has both parameters that are spread over processes and"
                    f" whole ones in its group {number}, which torch does not update at once. Give them in two groups:"
                    ' [{"params": spread}, {"params": whole}], or leave the argument out.',
                    subject=optimizer,
                )
        rank_zero_info(
            f"{type(optimizer).__name__} updates its parameters one by one, as some are spread over processes and some"
            " are not. With all of them in the plan of `parallelize_module` it takes fewer operations."
        )
        optimizer.register_step_pre_hook(partial(_choose, number, None, False))
        optimizer.register_step_post_hook(partial(_choose, number, False, None))


def _choose(number: int, before: bool | None, after: bool | None, optimizer: Optimizer, *_: Any) -> None:
    """For a step, decide what is left to torch: as it was before in what is saved."""
    group = optimizer.param_groups[number]
    for option in ("fused", "foreach"):
        if option in group and group[option] is before:
            group[option] = after
