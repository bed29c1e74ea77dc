"""Snapshot: a run as a checkpoint, and a checkpoint as a run.

``dump`` collects the state of everything that has some; the ``restore_*`` functions put it back, in the order in
which a
run becomes able to take it. Counts are written in the layout of Lightning's ``.ckpt`` files; what only fulmen knows
(random
states, the position in the data) is under the key ``"fulmen"``.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from fulmen.checkpoint.format import LOOPS, explain_mismatch, versions
from fulmen.checkpoint.hyperparameters import dump_hyperparameters
from fulmen.checkpoint.migration import migrate
from fulmen.errors import CheckpointError
from fulmen.fabric.distributed import all_gather_object, is_alone
from fulmen.fabric.seed import capture_random
from fulmen.loops.fit import FitLoop, check_epoch_limit
from fulmen.progress import Progress
from fulmen.ranks import rank_zero_info, rank_zero_warn
from fulmen.states import RestartStage

if TYPE_CHECKING:
    from fulmen.callback import Callback
    from fulmen.trainer import Trainer


def dump(trainer: Trainer, weights_only: bool = False) -> dict[str, Any]:
    """The run as a dictionary.

    Args:
        trainer: The run.
        weights_only: Leave out optimizers, schedulers, callbacks and precision.
    """
    module, datamodule = trainer.lightning_module, trainer.data.datamodule
    position = trainer.fit_loop.position()
    checkpoint: dict[str, Any] = {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        **versions(),
        "state_dict": dump_weights(trainer),
        "loops": dump_loops(trainer, position),
    }
    ours = checkpoint.pop("fulmen")
    if not weights_only:
        checkpoint["callbacks"] = dump_callbacks(trainer)
        checkpoint["optimizer_states"] = [
            trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers
        ]
        checkpoint["lr_schedulers"] = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        if precision := trainer.precision_plugin.state_dict():
            checkpoint[type(trainer.precision_plugin).__qualname__] = precision
        trainer.precision_plugin.on_save_checkpoint(checkpoint)
    for owner in (module, datamodule):
        if owner is not None:
            checkpoint.update(dump_hyperparameters(owner))
    if datamodule is not None and (state := datamodule.state_dict()):
        checkpoint[type(datamodule).__qualname__] = state
    checkpoint["fulmen"] = {**ours, **dump_random(trainer), "fit": position}
    if not weights_only:
        for call in trainer.hooks.on_save_checkpoint:
            call(checkpoint)
    else:
        module.on_save_checkpoint(checkpoint)
    return checkpoint


def check_together(trainer: Trainer, path: Any) -> None:
    """Refuses to save what is spread over processes that do not work together any more.

    Raises:
        RuntimeError: A failure is being handled, and each process has only a part of the state.
    """
    if is_alone() and trainer.strategy.saves_together:
        raise RuntimeError(
            f"The checkpoint {str(path)!r} was not written: the state is spread over {trainer.world_size} processes,"
            " which do not work together any more after a failure."
        )


def dump_random(trainer: Trainer) -> dict[str, Any]:
    """The state of the random generators; of several processes also that of the others."""
    states = all_gather_object(capture_random(), name="random states") if trainer.world_size > 1 else [capture_random()]
    others = {"random_of_others": states[1:]} if len(states) > 1 else {}
    return {"random": states[0], **others}


def dump_weights(trainer: Trainer) -> dict[str, Any]:
    """The state of the module, as the callbacks want it saved."""
    weights = trainer.strategy.lightning_module_state_dict()
    for callback in trainer.callbacks:
        weights = callback.weights_to_save(trainer, trainer.lightning_module, weights)
    return weights


def dump_callbacks(trainer: Trainer) -> dict[str, Any]:
    """The states of the callbacks that have one."""
    states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
    return {key: state for key, state in states.items() if state}


def dump_loops(trainer: Trainer, position: dict[str, Any]) -> dict[str, Any]:
    """Progress of the loops, in Lightning's layout."""
    manual = not trainer.lightning_module.automatic_optimization
    return {
        "fit_loop": {**dump_fit(trainer.fit_loop, manual), "state_dict": _loader_states(position)},
        "validate_loop": _evaluation(trainer.validate_loop.batch_progress, trainer.validate_loop.is_last_batch),
        "test_loop": _evaluation(trainer.test_loop.batch_progress, trainer.test_loop.is_last_batch),
        "predict_loop": {"state_dict": {}, "batch_progress": trainer.predict_loop.batch_progress.state_dict()},
    }


def _loader_states(position: dict[str, Any]) -> dict[str, Any]:
    """The states of the training loaders that keep their own."""
    loaders = position["feed"]["loaders"] if position["feed"] else []
    states = [loader["loader"] for loader in loaders if loader["loader"] is not None]
    return {"combined_loader": states} if states else {}


def _evaluation(progress: Progress, is_last: bool) -> dict[str, Any]:
    return {"state_dict": {}, "batch_progress": {**progress.state_dict(), "is_last_batch": is_last}}


def dump_fit(fit: FitLoop, manual: bool) -> dict[str, Any]:
    """Progress of the fit loop, in Lightning's layout."""
    steps, steps_in_epoch = fit.global_step, fit.global_step - fit.step_at_epoch_start
    automatic = (0, 0) if manual else (steps, steps_in_epoch)
    by_hand = (steps, steps) if manual else (0, 0)  # Lightning does not begin anew with each epoch here
    schedulers = (fit.schedulers.steps, fit.schedulers.steps - fit.scheduler_steps_at_epoch_start)
    val = fit.val_loop
    return {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": fit.batches_that_stepped},
        "epoch_loop.batch_progress": {**fit.batch_progress.state_dict(), "is_last_batch": fit.is_last_batch},
        "epoch_loop.scheduler_progress": _counts(*schedulers),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {"step": _counts(*automatic), "zero_grad": _counts(*automatic, "started")}
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": _counts(*by_hand),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": {**val.batch_progress.state_dict(), "is_last_batch": val.is_last_batch},
        "epoch_progress": fit.epoch_progress.state_dict(),
    }


def _counts(total: int, current: int, *more: str) -> dict[str, Any]:
    marks = ("ready", "completed", *more)
    return {"total": dict.fromkeys(marks, total), "current": dict.fromkeys(marks, current)}


# ---------------------------------------------------------------------------------------------------- restoring


def restore(trainer: Trainer, path: str, weights_only: bool | None) -> dict[str, Any]:
    """Reads a checkpoint, and puts back what a run has before its optimizers; returns it in the current layout."""
    checkpoint = migrate(trainer.strategy.load_checkpoint(path, weights_only=weights_only))
    restore_module(trainer, checkpoint)
    rank_zero_info(f"Restored from {path}.")
    return checkpoint


def restore_module(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Puts back what a run has before its optimizers: module, datamodule, callbacks."""
    module, datamodule = trainer.lightning_module, trainer.data.datamodule
    module.on_load_checkpoint(checkpoint)
    try:
        trainer.strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
    except RuntimeError as error:
        raise explain_mismatch(module, checkpoint["state_dict"], error) from error
    if datamodule is not None and type(datamodule).__qualname__ in checkpoint:
        datamodule.load_state_dict(checkpoint[type(datamodule).__qualname__])
    if "callbacks" in checkpoint:
        restore_callbacks(trainer, checkpoint)


def restore_callbacks(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Gives each callback its state back; says which states nobody takes."""
    states = checkpoint["callbacks"]
    known = {_key_in(states, callback) for callback in trainer.callbacks}
    if left := sorted(str(key) for key in states if key not in known):
        rank_zero_warn(
            f"The checkpoint holds states of callbacks that this Trainer does not have: {left}. They are ignored; add"
            " the callbacks to `Trainer(callbacks=...)` to restore them."
        )
    for callback in trainer.callbacks:
        callback.on_load_checkpoint(trainer, trainer.lightning_module, checkpoint)
    for callback in trainer.callbacks:
        if (key := _key_in(states, callback)) in states:
            callback.load_state_dict(deepcopy(states[key]))


def _key_in(states: dict[str, Any], callback: Callback) -> str:
    """The key of a callback's state: files of before 1.5 know only its class."""
    return callback.state_key if callback.state_key in states else type(callback).__qualname__


def restore_training(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Puts back precision, counters, and in fit optimizers, schedulers and position."""
    trainer.precision_plugin.on_load_checkpoint(checkpoint)
    key = type(trainer.precision_plugin).__qualname__
    if key in checkpoint:
        trainer.precision_plugin.load_state_dict(checkpoint[key])
    restore_loops(trainer, checkpoint)
    if trainer.state.fn != "fit":
        return
    check_epoch_limit(trainer)
    for name in ("optimizer_states", "lr_schedulers"):
        if name not in checkpoint:
            raise KeyError(
                f"The checkpoint has no {name!r}: it was saved with `weights_only=True`, so training cannot be resumed"
                " from it. To start from its weights, use `load_from_checkpoint` and fit without `ckpt_path`."
            )
    _check_optimizers(trainer, checkpoint)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    for config, state in zip(trainer.lr_scheduler_configs, checkpoint["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(state)


def _check_optimizers(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    given = (len(checkpoint["optimizer_states"]), len(checkpoint["lr_schedulers"]))
    here = (len(trainer.optimizers), len(trainer.lr_scheduler_configs))
    if given != here:
        raise CheckpointError(
            f"The checkpoint holds {given[0]} optimizer(s) and {given[1]} scheduler(s); `configure_optimizers`"
            f" returned {here[0]} and {here[1]}. Return the same as in the run that saved it, or start from the"
            " weights alone with `load_from_checkpoint`."
        )


def restore_loops(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Puts back the counters of the loop that is about to run."""
    fit, loops = trainer.fit_loop, checkpoint.get(LOOPS)
    if trainer.state.fn != "fit":
        return
    if loops is None:
        fit.global_step = checkpoint["global_step"]
        fit.epoch_progress.current.set(checkpoint["epoch"])
    else:
        restore_fit(fit, loops["fit_loop"], checkpoint, manual=not trainer.lightning_module.automatic_optimization)


def restore_fit(fit: FitLoop, state: dict[str, Any], checkpoint: dict[str, Any], manual: bool) -> None:
    """Puts back the counters and the position of the fit loop."""
    fit.epoch_progress.load_state_dict(state["epoch_progress"])
    if "epoch_loop.batch_progress" in state:
        fit.batch_progress.load_state_dict(state["epoch_loop.batch_progress"])
    if "epoch_loop.val_loop.batch_progress" in state:
        fit.val_loop.batch_progress.load_state_dict(state["epoch_loop.val_loop.batch_progress"])
    by_hand = "epoch_loop.manual_optimization.optim_step_progress"
    steps = state[by_hand] if manual else state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    fit.global_step = int(steps["total"]["completed"])
    fit.step_at_epoch_start = fit.global_step - int(steps["current"]["completed"])
    scheduler = state.get("epoch_loop.scheduler_progress", _counts(0, 0))
    fit.schedulers_before = int(scheduler["total"]["completed"])
    fit.scheduler_steps_at_epoch_start = fit.schedulers_before - int(scheduler["current"]["completed"])
    ours = checkpoint.get("fulmen", {})
    theirs = {
        "loader_states": state.get("state_dict", {}).get("combined_loader"),
        "is_last": state.get("epoch_loop.batch_progress", {}).get("is_last_batch"),
    }
    position = ours.get("fit", theirs)
    batches = fit.batch_progress.current
    in_batch_end = batches.completed < batches.processed
    # a process that was not there keeps its own
    states = [ours.get("random"), *ours.get("random_of_others", ())]
    rank = fit.trainer.global_rank
    fit.load_position({**position, "random": states[rank] if rank < len(states) else None}, manual)
    fit.restart_stage = restart_stage(fit, in_batch_end, bool(theirs["is_last"]))


def restart_stage(fit: FitLoop, in_batch_end: bool, on_last: bool) -> str:
    """Where a fit goes on whose position has been loaded.

    Args:
        fit: The loop.
        in_batch_end: Whether the checkpoint was taken at the end of a batch.
        on_last: Whether that was the last one of its epoch.
    """
    if not fit.resumed:
        if not fit.epoch_progress.current.processed:
            return RestartStage.RESTARTED_ON_EPOCH_START
        return RestartStage.RESTARTED_ON_EPOCH_END if fit.plateau_pending else RestartStage.RESUMED_ON_EPOCH_END
    if in_batch_end:
        return RestartStage.RESTARTED_ON_LAST if on_last else RestartStage.RESTARTED_ON_TRAIN_BATCH_END
    return RestartStage.RESTARTED_MID_EVALUATION if fit.validation_pending else RestartStage.RESTARTED_MID_EPOCH
