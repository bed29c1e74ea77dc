"""What a Trainer is going to do, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.hooks import describe_hooks

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer


def describe(trainer: Trainer, model: LightningModule | None) -> str:
    """The resolved plan, the limits, and each hook in the order of the loop with who listens on it.

    Args:
        trainer: The trainer.
        model: The module; None for the one of the last run.
    """
    module = model if model is not None else trainer.strategy.lightning_module
    lines = ["plan", *_indent(trainer.plan.describe().splitlines()), "run", *_indent(_limits(trainer))]
    if module is not None:
        lines += ["hooks", *_indent(_hooks(trainer, module))]
    return "\n".join(lines)


def _indent(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _limits(trainer: Trainer) -> list[str]:
    rows = {
        "epochs": f"{trainer.min_epochs or 0} to {_or_unlimited(trainer.max_epochs)}",
        "steps": f"{trainer.min_steps or 0} to {_or_unlimited(trainer.max_steps)}",
        "accumulate": f"{trainer.accumulate_grad_batches} batches a step",
        "validation": _validation(trainer),
        "clipping": "off"
        if not trainer.gradient_clip_val
        else f"{trainer.gradient_clip_algorithm or 'norm'} {trainer.gradient_clip_val}",
        "loggers": ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none",
        "root": trainer.default_root_dir,
    }
    if trainer.max_count is not None:
        rows["duration"] = f"{trainer.max_count.interval:g} {trainer.max_count.unit}"
    if "step" in trainer.fit_loop.__dict__:
        rows["step"] = type(trainer.fit_loop.step).__name__
    width = max(map(len, rows))
    return [f"{name:<{width}}  {value}" for name, value in rows.items()]


def _or_unlimited(limit: int | None) -> str:
    return "unlimited" if limit in (None, -1) else str(limit)


def _validation(trainer: Trainer) -> str:
    if trainer.val_check_seconds is not None:
        return f"every {trainer.val_check_seconds:g} s"
    if trainer.val_check_every is not None:
        return f"every {trainer.val_check_every.interval:g} {trainer.val_check_every.unit}"
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, int):
        inside = f"every {interval} batches"
    else:
        inside = "at the end" if interval == 1.0 else f"every {interval:g}"
    return (
        f"{inside}, over epochs"
        if every is None
        else f"{inside} of every {'epoch' if every == 1 else f'{every} epochs'}"
    )


def _hooks(trainer: Trainer, module: LightningModule) -> list[str]:
    rows = describe_hooks(trainer, module)
    width = max(len(hook.name) for hook, _ in rows) if rows else 0
    return [f"{hook.name:<{width}}  {', '.join(names)}" for hook, names in rows]
