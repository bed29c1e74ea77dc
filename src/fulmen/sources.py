"""Where the data of a run come from: loaders given by the user, a datamodule, or the module itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fulmen.data.combined import CombinedLoader, flatten, map_leaves
from fulmen.data.feed import Feed, without_shuffle
from fulmen.data.loaders import complete_copy
from fulmen.data.shard import refuse_uneven, sharded
from fulmen.datahooks import DataHooks
from fulmen.datamodule import LightningDataModule
from fulmen.errors import MisconfigurationException, PossibleUserWarning
from fulmen.fabric import distributed
from fulmen.fabric.overriding import overrides as plugin_overrides
from fulmen.hooks import opened, overrides
from fulmen.loops.signature import takes_dataloader_iter
from fulmen.module import LightningModule
from fulmen.ranks import rank_zero_warn
from fulmen.tree import move

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

HOOK_OF = {
    "train": "train_dataloader",
    "validate": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
STEP_OF = {
    "train": "training_step",
    "validate": "validation_step",
    "test": "test_step",
    "predict": "predict_step",
}
LIMIT_OF = {"train": "train", "validate": "val", "test": "test", "predict": "predict"}


class DataSources:
    """The data of a run, by stage ("train", "validate", "test", "predict").

    Args:
        trainer: Whose run it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.given: dict[str, Any] = {}
        self.collections: dict[tuple[str, bool], Any] = {}
        self.datamodule: LightningDataModule | None = None
        self._transfer: Callable[[Any, int], Any] | None = None

    def attach(self, datamodule: LightningDataModule | None, **given: Any) -> None:
        """Takes the loaders or the datamodule of a run; what is not given comes from the module.

        Args:
            datamodule: The source of all stages, if there is one.
            **given: Loaders by stage.
        """
        self.datamodule = datamodule
        self.given = {stage: loaders for stage, loaders in given.items() if loaders is not None}
        self._transfer = None

    def owner(self, stage: str) -> Any | None:
        """Who has the loaders of ``stage``: the user's loaders, the datamodule or the module; None if nobody."""
        if stage in self.given:
            return self.given[stage]
        hook = HOOK_OF[stage]
        if self.datamodule is not None:
            return self.datamodule if overrides(self.datamodule, hook, LightningDataModule) else None
        module = self.trainer.lightning_module
        return module if overrides(module, hook, LightningModule) else None

    def request(self, stage: str) -> Any:
        """The loaders of ``stage``, from where they come."""
        owner, hook = self.owner(stage), HOOK_OF[stage]
        if owner is None:
            raise MisconfigurationException(
                f"`Trainer.{self.trainer.state.fn or 'fit'}` has no {LIMIT_OF[stage]} data. Pass dataloaders to the"
                f" call, or a datamodule, or define `{hook}` in"
                f" `{type(self.datamodule or self.trainer.lightning_module).__name__}`."
            )
        if stage in self.given:
            return owner
        loaders = opened(self.trainer.book, hook, getattr(owner, hook))()
        if loaders is None:
            raise TypeError(
                f"`{type(owner).__name__}.{hook}` returned None; expected a dataloader, or several in a list or dict."
            )
        return loaders

    def process(self, stage: str) -> Any:
        """The loaders of ``stage`` as they are fed: through the strategy, without shuffling when overfitting."""
        loaders = self.request(stage)
        trainer = self.trainer
        if trainer.overfit_batches and stage in ("train", "validate") and trainer.state.fn == "fit":
            loaders = without_shuffle(loaders)
        prepare = partial(self._prepare, even=stage == "train")
        if isinstance(loaders, CombinedLoader):
            loaders.flattened = list(map(prepare, loaders.flattened))
            return loaders
        return map_leaves(prepare, loaders)

    def _prepare(self, loader: Any, even: bool) -> Any:
        """A loader as the strategy needs it: of several ranks each gets its share of the data."""
        strategy = self.trainer.strategy
        share = strategy.distributed_sampler_kwargs if self.trainer.use_distributed_sampler else None
        if share is not None:
            loader = sharded(loader, share["num_replicas"], share["rank"], even=even)
        return strategy.process_dataloader(loader)

    def feed(self, stage: str) -> Feed:
        """The feed of a loop that takes all loaders at once: training."""
        loaders = self.process(stage)
        if stage == "train" and isinstance(loaders, CombinedLoader) and loaders.mode == "sequential":
            raise ValueError(
                "`Trainer.fit` cannot train on a CombinedLoader of mode 'sequential'. Use 'min_size', 'max_size' or"
                " 'max_size_cycle', or chain the datasets with `torch.utils.data.ConcatDataset`."
            )
        feed = self._make_feed(loaders, stage)
        if self.trainer.world_size > 1:
            refuse_uneven(distributed.all_gather_object(feed.num_batches, name="lengths of the train loaders"), stage)
        return feed

    def evaluation_feeds(self, stage: str, own: bool) -> tuple[list[Feed], bool]:
        """The feeds of an evaluation or prediction, one for each loader, and whether there are several.

        The collection that the loaders are in is kept in ``collections``, by stage and whether it is a run of its own.
        Nobody is asked for loaders if the limit is 0.
        """
        if getattr(self.trainer, f"limit_{LIMIT_OF[stage]}_batches") == 0:
            return [], False
        loaders = self.process(stage)
        at_once = isinstance(loaders, CombinedLoader) and loaders.mode != "sequential"
        if stage == "predict":
            if at_once:
                raise ValueError("`Trainer.predict` takes a CombinedLoader only of mode 'sequential'.")
            loaders = map_leaves(complete_copy, loaders)
        self.collections[stage, own] = collection_of(loaders)
        if at_once:
            return [self._make_feed(loaders, stage)], False
        feeds = [self._make_feed(leaf, stage, place) for place, leaf in enumerate(flatten(loaders))]
        return feeds, len(feeds) > 1

    def _make_feed(self, loaders: Any, stage: str, loader: int = 0) -> Feed:
        name = LIMIT_OF[stage]
        overfits = self.trainer.overfit_batches and name in ("train", "val")
        limited_by = "overfit_batches" if overfits else f"limit_{name}_batches"
        limit = getattr(self.trainer, f"limit_{name}_batches")
        reloading = name in ("train", "val") and self.trainer.reload_dataloaders_every_n_epochs > 0
        make = partial(Feed, loaders, limit=limit, name=name, limited_by=limited_by, reloading=reloading)
        if self.trainer.world_size > 1:
            make = partial(make, sum_over_ranks=_sum_over_ranks, allow_zero_length=self._allows_zero_length)
        if takes_dataloader_iter(getattr(self.trainer.lightning_module, STEP_OF[stage])):
            return make()
        transfer = self.transfer()

        def to_loader(batch: Any, _: int) -> Any:
            return transfer(batch, loader)

        return make(transfer=to_loader if loader else transfer)

    @property
    def _allows_zero_length(self) -> bool:
        owners = (self.trainer.lightning_module, self.datamodule)
        return any(getattr(owner, "allow_zero_length_dataloader_with_multiple_devices", False) for owner in owners)

    # ------------------------------------------------------------------------------------------------ transfer

    def transfer(self) -> Callable[[Any, int], Any]:
        """What brings a batch to the device: the plain move, or the chain of hooks where some are overridden."""
        if self._transfer is None:
            self._transfer = self._bind_transfer()
        return self._transfer

    def _bind_transfer(self) -> Callable[[Any, int], Any]:
        strategy, precision = self.trainer.strategy, self.trainer.precision_plugin
        device = strategy.root_device
        before = self._transfer_hook("on_before_batch_transfer")
        to_device = self._transfer_hook("transfer_batch_to_device")
        after = self._transfer_hook("on_after_batch_transfer")
        converts = plugin_overrides(precision, "convert_input")
        if not (before or to_device or after or converts or plugin_overrides(strategy, "batch_to_device")):
            return lambda batch, _: move(batch, device)

        def bring(batch: Any, device: Any, loader: int) -> Any:
            batch = to_device(batch, device, loader) if to_device else move(batch, device)
            return after(batch, loader) if after else batch

        route: Callable[..., Any] = bring
        if plugin_overrides(strategy, "batch_to_device"):
            strategy.bind("batch_to_device", bring)
            route = strategy.batch_to_device

        def transfer(batch: Any, loader: int) -> Any:
            batch = precision.convert_input(batch)
            batch = before(batch, loader) if before else batch
            return route(batch, device, loader)

        return transfer

    def _transfer_hook(self, name: str) -> Callable[..., Any] | None:
        module, datamodule = self.trainer.lightning_module, self.datamodule
        in_module = overrides(module, name, DataHooks)
        owner: Any = module if in_module else None
        if datamodule is not None:
            in_datamodule = overrides(datamodule, name, DataHooks)
            if in_module and in_datamodule:
                rank_zero_warn(
                    f"Both module and datamodule override `{name}`; the datamodule's is used. Remove the other."
                )
            elif in_module:
                rank_zero_warn(
                    f"The data come from a datamodule, but `{name}` is overridden in the module. It is used."
                )
            if in_datamodule:
                owner = datamodule
        return None if owner is None else opened(self.trainer.book, name, getattr(owner, name))

    # ------------------------------------------------------------------------------------------------ checks

    def resolve_val_check_batch(self, feed: Feed) -> int | float:
        """``val_check_interval`` in batches of this training feed; infinity for its end."""
        trainer, num_batches = self.trainer, feed.num_batches
        interval = trainer.val_check_interval
        if trainer.val_check_seconds is not None or trainer.val_check_every is not None:
            return float("inf")
        if isinstance(interval, int):
            if interval > num_batches and trainer.check_val_every_n_epoch is not None:
                raise ValueError(
                    f"`Trainer(val_check_interval={interval})` is more than the {num_batches} training batches of an"
                    " epoch, so no validation would ever run. Lower it, or pass `check_val_every_n_epoch=None` to"
                    " count over epochs."
                )
            return interval
        if not feed.has_length:
            if interval == 1.0:
                return float("inf")
            raise MisconfigurationException(
                f"`Trainer(val_check_interval={interval})` is a fraction, but the length of the train dataloader is"
                " not known. Give a number of batches (an int), 1.0, or a time."
            )
        return max(1, int(num_batches * interval))

    def warn_log_interval(self, num_batches: int | float) -> None:
        """Says so if an epoch is shorter than the logging interval."""
        trainer = self.trainer
        if trainer.loggers and num_batches < trainer.log_every_n_steps and not trainer.fast_dev_run:
            rank_zero_warn(
                f"An epoch has {num_batches} training batches, less than"
                f" `Trainer(log_every_n_steps={trainer.log_every_n_steps})`: epochs may pass without a logged step."
                " Lower it to see the curve.",
                category=PossibleUserWarning,
            )


def _sum_over_ranks(number: int) -> int:
    return sum(distributed.all_gather_object(number, name="lengths of the loaders"))


def collection_of(loaders: Any) -> Any:
    """The user's collection of loaders, also where it is combined."""
    return loaders.iterables if isinstance(loaders, CombinedLoader) else loaders
