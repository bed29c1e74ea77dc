"""Gradients: how large they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["grad_norm"]


def grad_norm(module: nn.Module, norm_type: float | int | str, group_separator: str = "/") -> dict[str, Tensor]:
    """The norm of each parameter's gradient, and of all together.

    Args:
        module: The module, after a backward pass.
        norm_type: The order of the norm, more than 0; "inf" for the largest absolute value.
        group_separator: What stands between "grad_<n>_norm" and a parameter's name.

    Returns:
        "grad_<n>_norm/<parameter>" -> norm, and "grad_<n>_norm_total"; empty if there are no gradients.

    Raises:
        ValueError: ``norm_type`` is not more than 0.

    Example:
        >>> def on_before_optimizer_step(self, optimizer):
        ...     self.log_dict(grad_norm(self, norm_type=2))
    """
    order = float(norm_type)
    if order <= 0:
        raise ValueError(f"`grad_norm(norm_type={norm_type!r})`: expected a number above 0, or 'inf'.")
    norms = {
        f"grad_{order}_norm{group_separator}{name}": parameter.grad.norm(order)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        device = next(iter(norms.values())).device
        norms[f"grad_{order}_norm_total"] = torch.stack([norm.to(device) for norm in norms.values()]).norm(order)
    return norms
