"""Arguments that a function does not have: what was meant, and what those of older versions have become."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from fulmen.suggest import closest

__all__ = ["refuse_unknown"]

#: What to type instead of an argument of the Trainer that older versions of Lightning had, or that has its place
#: elsewhere; {} is the value that was given.
_ELSEWHERE = {
    "amp_backend": "`Trainer(precision='16-mixed')`, which is torch's own",
    "amp_level": "`Trainer(precision='16-mixed')`, which is torch's own",
    "auto_lr_find": "`Tuner(trainer).lr_find(model)` before `trainer.fit(model)`",
    "auto_scale_batch_size": "`Tuner(trainer).scale_batch_size(model)` before `trainer.fit(model)`",
    "auto_select_gpus": "`Trainer(accelerator='gpu', devices=find_usable_cuda_devices(1))`",
    "automatic_optimization": "`self.automatic_optimization = {}` in `__init__` of the module",
    "batch_size": "`DataLoader(dataset, batch_size={})`",
    "checkpoint_callback": "`Trainer(enable_checkpointing=True)` or False, or `Trainer(callbacks=[ModelCheckpoint()])`",
    "ckpt_path": "`trainer.fit(model, ckpt_path={})`",
    "datamodule": "`trainer.fit(model, datamodule=datamodule)`",
    "default_save_path": "`Trainer(default_root_dir={})`",
    "dirpath": "`Trainer(callbacks=[ModelCheckpoint(dirpath={})])`, or `Trainer(default_root_dir={})`",
    "distributed_backend": "`Trainer(strategy={})`",
    "early_stop_callback": "`Trainer(callbacks=[EarlyStopping(monitor='val_loss')])`",
    "epochs": "`Trainer(max_epochs={})`",
    "flush_logs_every_n_steps": "`Trainer(logger=CSVLogger('logs', flush_logs_every_n_steps={}))`",
    "gpus": "`Trainer(accelerator='gpu', devices={})`, or `accelerator='cpu'` for none",
    "gradient_clip": "`Trainer(gradient_clip_val={})`",
    "ipus": "`Trainer(accelerator='auto')`: this kind of device is not supported any more",
    "learning_rate": "the learning rate in `configure_optimizers` of the module",
    "log_gpu_memory": "`Trainer(callbacks=[DeviceStatsMonitor()])`",
    "log_save_interval": "`Trainer(logger=CSVLogger('logs', flush_logs_every_n_steps={}))`",
    "lr": "the learning rate in `configure_optimizers` of the module",
    "max_nb_epochs": "`Trainer(max_epochs={})`",
    "min_nb_epochs": "`Trainer(min_epochs={})`",
    "model": "`trainer.fit(model)`",
    "monitor": "`Trainer(callbacks=[ModelCheckpoint(monitor={})])`",
    "move_metrics_to_cpu": "nothing: logged values do not hold up the device",
    "multiple_trainloader_mode": "`CombinedLoader(loaders, mode={})` as the train dataloader",
    "nb_gpu_nodes": "`Trainer(num_nodes={})`",
    "nb_sanity_val_steps": "`Trainer(num_sanity_val_steps={})`",
    "num_gpus": "`Trainer(accelerator='gpu', devices={})`, or `accelerator='cpu'` for none",
    "num_processes": "`Trainer(accelerator='cpu', devices={})`",
    "overfit_pct": "`Trainer(overfit_batches={})`",
    "prepare_data_per_node": "`self.prepare_data_per_node = {}` in `__init__` of the module or datamodule",
    "print_nan_grads": "`Trainer(detect_anomaly={})`",
    "process_position": "`Trainer(callbacks=[TQDMProgressBar(process_position={})])`",
    "progress_bar_refresh_rate": "`Trainer(callbacks=[TQDMProgressBar(refresh_rate={})])`, or"
    " `Trainer(enable_progress_bar=False)` for none",
    "reload_dataloaders_every_epoch": "`Trainer(reload_dataloaders_every_n_epochs=1)`",
    "replace_sampler_ddp": "`Trainer(use_distributed_sampler={})`",
    "resume_from_checkpoint": "`trainer.fit(model, ckpt_path={})`",
    "row_log_interval": "`Trainer(log_every_n_steps={})`",
    "seed": "`seed_everything({})` before the module is made",
    "show_progress_bar": "`Trainer(enable_progress_bar={})`",
    "steps": "`Trainer(max_steps={})`",
    "stochastic_weight_avg": "`Trainer(callbacks=[StochasticWeightAveraging(swa_lrs=0.01)])`",
    "terminate_on_nan": "`Trainer(detect_anomaly={})`, or `EarlyStopping(monitor, check_finite=True)`",
    "test_percent_check": "`Trainer(limit_test_batches={})`",
    "tpu_cores": "`Trainer(accelerator='tpu', devices={})`",
    "track_grad_norm": "`self.log_dict(grad_norm(self, norm_type={}))` in `on_before_optimizer_step` of the module",
    "train_dataloaders": "`trainer.fit(model, train_dataloaders={})`",
    "train_percent_check": "`Trainer(limit_train_batches={})`",
    "truncated_bptt_steps": "a loop over the parts of the sequence in `training_step`, with"
    " `self.automatic_optimization = False`",
    "use_amp": "`Trainer(precision='16-mixed')`",
    "val_dataloaders": "`trainer.fit(model, val_dataloaders={})`",
    "val_percent_check": "`Trainer(limit_val_batches={})`",
    "weights_save_path": "`Trainer(callbacks=[ModelCheckpoint(dirpath={})])`, or `Trainer(default_root_dir={})`",
    "weights_summary": "`Trainer(enable_model_summary=True)` or False, or"
    " `Trainer(callbacks=[ModelSummary(max_depth=-1)])` for all layers",
}


def refuse_unknown(known: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Checks the names of the arguments that a Trainer is given.

    Args:
        known: The arguments there are, in the order of the signature.
        args: What was given by position.
        kwargs: What was given by name.

    Raises:
        TypeError: One that there is not, too many, or one twice.
    """
    if unknown := [name for name in kwargs if name not in known]:
        raise TypeError(" ".join(_explain(name, kwargs[name], known) for name in unknown))
    if len(args) > len(known):
        raise TypeError(f"`Trainer` has {len(known)} arguments, {len(args)} were given. Type them by name.")
    if twice := [name for name in known[: len(args)] if name in kwargs]:
        raise TypeError(f"`Trainer` was given {twice[0]!r} twice, by position and by name. Type it by name only.")


def _explain(name: str, value: Any, known: Sequence[str]) -> str:
    shown = reprlib.repr(value)
    message = f"`Trainer({name}={shown})`: there is no argument {name!r}."
    if name in _ELSEWHERE:
        return f"{message} Type instead: {_ELSEWHERE[name].replace('{}', shown)}."
    meant = closest(name, known)
    if meant is None:
        return f"{message} There are: {', '.join(known)}."
    return f"{message} Did you mean {meant!r}? Type: `Trainer({meant}={shown})`."
