"""What a LightningModule finds at ``self.trainer`` when Fabric runs it, and there is no Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulmen.fabric.fabric import Fabric


class TrainerStandIn:
    """Answers with the attributes of a ``Fabric``, as far as it has those of a Trainer.

    Args:
        fabric: The Fabric that set the module up.
        optimizers: The optimizers that it set up together with the module.

    Attributes:
        lightning_optimizers: These optimizers.
    """

    def __init__(self, fabric: Fabric, optimizers: list[Any]) -> None:
        self.fabric = fabric
        self.lightning_optimizers = optimizers

    @property
    def optimizers(self) -> list[Any]:
        """The user's own optimizers, without what Fabric has put around them."""
        from fulmen.fabric.wrappers import unwrap

        return [unwrap(optimizer) for optimizer in self.lightning_optimizers]

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self.fabric, name)
        except AttributeError:
            raise AttributeError(
                f"`self.trainer.{name}`: Fabric runs this module, and has no `{name}`. A loop of your own knows it"
                " itself: hand it to the module's method as an argument, or let a `Trainer` run the module.",
                name=name,
                obj=self,
            ) from None
