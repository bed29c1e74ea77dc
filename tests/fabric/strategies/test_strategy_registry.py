"""Strategies under names."""

import pytest

from fulmen.fabric.strategies import SingleDeviceStrategy, StrategyRegistry


def test_what_is_there():
    names = StrategyRegistry.available_strategies()
    assert names == sorted(names)
    assert {"single_device", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook"} < set(names)
    assert {"ddp_find_unused_parameters_true", "ddp_fork_find_unused_parameters_false"} < set(names)
    assert type(StrategyRegistry.get("single_device")) is SingleDeviceStrategy


def test_a_strategy_of_the_users_own():
    class Mine(SingleDeviceStrategy):
        strategy_name = "mine"

        def __init__(self, device="cpu", depth=1, **kwargs):
            super().__init__(device, **kwargs)
            self.depth = depth

    StrategyRegistry.register("mine_deep", Mine, description="Mine, deep", depth=3)
    try:
        assert StrategyRegistry.get("mine_deep").depth == 3
    finally:
        StrategyRegistry.remove("mine_deep")
    with pytest.raises(KeyError, match="mine_deep"):
        StrategyRegistry.get("mine_deep")
