"""What strategies share whose parameters are spread over processes: their state, and evaluation of uneven data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import nullcontext
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from fulmen.checkpoint.sharded import is_sharded, split
from fulmen.fabric import distributed
from fulmen.fabric.strategies import sharding
from fulmen.fabric.strategies.clipping import clip_shards
from fulmen.fabric.strategies.fsdp_uneven import Units
from fulmen.fabric.strategies.parallel import ParallelStrategy

__all__ = ["ShardedStrategy"]


class ShardedStrategy(ParallelStrategy, ABC):
    """Several processes of which each has parts of the parameters; arguments as `ParallelStrategy`."""

    fills_meta_modules: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sharded: list[nn.Module] = []
        self._shard_of: MutableMapping[nn.Parameter, nn.Parameter] = WeakIdKeyDictionary()  # before and after sharding
        self._units: Units | None = None

    @property
    @abstractmethod
    def saves_shards(self) -> bool:
        """Whether each process writes its part of a checkpoint, in the place of one that writes a single file."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """A checkpoint is loaded into the shards."""
        return True

    def setup_environment(self) -> None:
        """Make this process ready; gradients are clipped as shards."""
        super().setup_environment()
        clip_shards(self.precision_plugin)

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Let an optimizer that was made before its module was sharded have the shards.

        Raises:
            RuntimeError: It has a state of whole parameters already.
        """
        optimizer = super().setup_optimizer(optimizer)
        for group in optimizer.param_groups:
            group["params"] = [self._shard_of.get(parameter, parameter) for parameter in group["params"]]
        if stale := [parameter for parameter in optimizer.state if parameter in self._shard_of]:
            raise RuntimeError(
                f"{type(optimizer).__name__} has the state of {len(stale)} parameters from before they were sharded."
                " Set up module and optimizer first, then load the state: fabric.load(path, {...})"
            )
        return optimizer

    def took_over(self, module: nn.Module, before: Mapping[str, nn.Parameter]) -> None:
        """Remember a module whose parameters were sharded.

        Args:
            module: The module.
            before: Its parameters of before, by name.
        """
        for name, parameter in module.named_parameters():
            if name in before and before[name] is not parameter:
                self._shard_of[before[name]] = parameter
        if not any(module is known for known in self._sharded):
            self._sharded.append(module)

    def copy_for_average(self, module: nn.Module) -> nn.Module:
        """The names and shards of a module, which may be copied; a sharded module itself may not."""
        return sharding.copy_of_shards(module)

    # Evaluation

    def in_step(self, batches: Iterator[Any], num_batches: int | float) -> Iterator[Any]:
        """Batches of an evaluation, in which all processes have to gather parameters equally often.

        A process that has run out of batches goes on taking part in the steps of the others, without calling anything
        of the user's.

        Args:
            batches: Those of this process.
            num_batches: Their number; infinity if it is not known.
        """
        units = self._units
        assert units is not None
        counts = distributed.all_gather_object(num_batches, name="number of batches")
        is_known = float("inf") not in counts
        if is_known and len(set(counts)) == 1:
            yield from batches
            return
        for index in count():
            batch = next(batches, _NO_BATCH)
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
                units.follow(leader, self.root_device)
                continue
            with nullcontext() if all(running) else units.lead(leader, self.root_device):
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
        return state if self.saves_shards else sharding.whole_state(state, self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load "state_dict" of a checkpoint into the connected module: each process takes its part."""
        self.load_module_state_dict(self.lightning_module, checkpoint["state_dict"], strict)

    def load_module_state_dict(self, module: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Load whole tensors, the same on all processes, or shards into a sharded module."""
        sharding.load_module(module, state_dict, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer: whole on rank 0 as on one device, or the shards under the parameters' names."""
        if self.saves_shards:
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
        if not self.saves_shards:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        if storage_options is not None:
            raise TypeError(
                f"A sharded checkpoint takes no `storage_options`, and was given {storage_options!r}. Leave them"
                " out, or save single files."
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

    def _to_cpu(self) -> None:
        """Shards stay where their process group is."""


_NO_BATCH = object()


def refuse_fsdp1(module: nn.Module) -> None:
    """Refuse modules wrapped by `FullyShardedDataParallel`.

    Raises:
        TypeError: There is one.
    """
    for name, part in module.named_modules():
        if isinstance(part, FullyShardedDataParallel):
            raise TypeError(
                f"{name or type(part).__name__!r} is wrapped by FullyShardedDataParallel (FSDP1), which does not go"
                " together with FSDP2. Leave the wrapping to FSDPStrategy, or call `fully_shard` in `configure_model`."
            )
