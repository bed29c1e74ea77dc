"""The summary of a module whose parameters DeepSpeed has shared out among the devices (ZeRO stage 3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fulmen.summary import (
    NOT_APPLICABLE,
    LayerSummary,
    ModelSummary,
    SummaryData,
    get_human_readable_count,
)

__all__ = ["DeepSpeedLayerSummary", "DeepSpeedSummary", "deepspeed_param_size"]


def deepspeed_param_size(p: nn.Parameter | Tensor) -> int:
    """The number of elements of a parameter on all devices together; uninitialised ones count 0.

    Args:
        p: The parameter. What DeepSpeed has not shared out counts as it is.
    """
    if isinstance(p, UninitializedParameter):
        return 0
    return int(getattr(p, "ds_numel", p.numel()))


def _size_of_shard(p: nn.Parameter) -> int:
    """The number of elements of the part that one device has."""
    if isinstance(p, UninitializedParameter):
        return 0
    return int(p.partition_numel() if hasattr(p, "partition_numel") else p.numel())


class DeepSpeedLayerSummary(LayerSummary):
    """One layer, with its parameters on all devices together."""

    _count = staticmethod(deepspeed_param_size)

    @property
    def average_shard_parameters(self) -> int:
        """Number of parameters that one device has of the layer."""
        return sum(_size_of_shard(parameter) for parameter in self._module.parameters())


class DeepSpeedSummary(ModelSummary):
    """The summary of a module, with a column that says how many parameters each device has."""

    _layer_summary = DeepSpeedLayerSummary
    _count = staticmethod(deepspeed_param_size)

    @property
    def parameters_per_layer(self) -> list[int]:
        """Number of parameters that one device has of each layer with a row."""
        return [layer.average_shard_parameters for layer in self._layers.values()]  # type: ignore[attr-defined]

    def data(self) -> SummaryData:
        """The columns of the table, as strings."""
        columns = super().data()
        place = 1 + [header for header, _ in columns].index("Params")
        shards = [get_human_readable_count(number) for number in self.parameters_per_layer]
        if len(columns[0][1]) > len(shards):  # the row of what is outside the layers
            shards.append(NOT_APPLICABLE)
        return [*columns[:place], ("Params per Device", shards), *columns[place:]]
