"""What users type for FSDP, and what `fully_shard` gets."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffload,
    CPUOffloadPolicy,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
)

from fulmen import Trainer
from fulmen.fabric.errors import PlanError
from fulmen.fabric.precision import HalfPrecision
from fulmen.fabric.strategies import fsdp_settings as settings
from fulmen.strategies import FSDPStrategy, StrategyRegistry
from processes import run_ranks

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BRAIN = torch.bfloat16


@pytest.mark.parametrize("name", ["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "_HYBRID_SHARD_ZERO2", "NO_SHARD"])
def test_sharding_strategies_by_name_and_as_fsdp1_has_them(name):
    of_fsdp1 = ShardingStrategy[name]
    assert settings.sharding_of(name.lower()) is settings.sharding_of(of_fsdp1)
    assert FSDPStrategy(sharding_strategy=name).sharding_strategy is of_fsdp1


def test_an_unknown_sharding_strategy():
    with pytest.raises(PlanError, match="Did you mean 'FULL_SHARD'") as caught:
        FSDPStrategy(sharding_strategy="FULL_SHART")
    assert caught.value.subject == "FULL_SHART"


def shapes():
    def sizes(name, given=None, num_nodes=1):
        mesh = settings.sharding_of(name).mesh(given, "cpu", num_nodes)
        return tuple(mesh.shape), mesh.mesh_dim_names

    with pytest.raises(PlanError, match=r"device_mesh=\(3, 2\) does not fit 4 processes.*\(2, 2\)"):
        sizes("HYBRID_SHARD", (3, 2))
    given = settings.sharding_of("FULL_SHARD").mesh((2, 2), "cpu", 1)
    assert settings.sharding_of("FULL_SHARD").mesh(given, "cpu", 1) is given
    return [sizes("FULL_SHARD"), sizes("NO_SHARD"), sizes("HYBRID_SHARD", num_nodes=2), sizes("HYBRID_SHARD", (4, 1))]


def test_meshes():
    both = ("replicate", "shard")
    assert run_ranks(shapes, 4)[0] == [((4,), ("shard",)), ((4, 1), both), ((2, 2), both), ((4, 1), both)]


def test_arguments_of_fsdp1_that_mean_nothing_are_left_out():
    given = {"use_orig_params": True, "limit_all_gathers": True, "sync_module_states": True, "backward_prefetch": None}
    assert settings.split_arguments(given) == ({}, {})
    with pytest.warns(UserWarning, match=r"FSDPStrategy\(use_orig_params=False\).*no meaning in FSDP2"):
        FSDPStrategy(use_orig_params=False)
    assert settings.split_arguments({"ignored_modules": [], "reshard_after_forward": 2}) == (
        {"ignored_modules": []},
        {"reshard_after_forward": 2},
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ignored_module": []}, "no argument 'ignored_module'. Did you mean 'ignored_modules'"),
        ({"process_group": None}, "type device_mesh="),
        ({"mixed_precision": "bf16"}, None),
        ({"precision_plugin": HalfPrecision("bf16-true")}, "works with a FSDPPrecision, got"),
    ],
)
def test_wrong_arguments(given, message):
    if message is None:
        with pytest.raises(TypeError, match="mixed_precision='bf16' is not known"):
            _ = FSDPStrategy(**given).mixed_precision_config
        return
    with pytest.raises(TypeError, match=message):
        FSDPStrategy(**given)


def test_wrong_values():
    with pytest.raises(ValueError, match="state_dict_type='half' is not known"):
        FSDPStrategy(state_dict_type="half")
    with (
        pytest.deprecated_call(match="activation_checkpointing_policy={...}"),
        pytest.raises(ValueError, match="say the same"),
    ):
        FSDPStrategy(activation_checkpointing=nn.Linear, activation_checkpointing_policy={nn.Linear})
    assert settings.checkpointing_policy_of(None, nn.Linear) == {nn.Linear}
    assert settings.checkpointing_policy_of(None, [nn.Linear, nn.ReLU]) == {nn.Linear, nn.ReLU}


def test_mixed_precision():
    default = MixedPrecisionPolicy(param_dtype=BRAIN)
    assert settings.mixed_precision_of(None, default) is default
    assert settings.mixed_precision_of(default, MixedPrecisionPolicy()) is default
    of_fsdp1 = MixedPrecision(param_dtype=BRAIN, buffer_dtype=BRAIN, cast_root_forward_inputs=False)
    expected = MixedPrecisionPolicy(param_dtype=BRAIN, reduce_dtype=BRAIN, cast_forward_inputs=False)
    assert settings.mixed_precision_of(of_fsdp1, default) == expected
    with pytest.warns(UserWarning, match="buffers keep their type"):
        settings.mixed_precision_of(MixedPrecision(buffer_dtype=BRAIN), default)
    assert FSDPStrategy(mp_policy=default).mixed_precision_config is default
    single = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
    assert FSDPStrategy().mixed_precision_config == single


@pytest.mark.parametrize("given", [True, CPUOffload(offload_params=True), CPUOffloadPolicy()])
def test_offloading(given):
    for device, pinned in ((CPU, False), (CUDA, True)):
        policy = settings.offload_of(given, device)
        assert isinstance(policy, CPUOffloadPolicy)
        assert policy.pin_memory is pinned
    for nothing in (None, False, CPUOffload(), OffloadPolicy()):
        assert type(settings.offload_of(nothing, CPU)) is OffloadPolicy
    with pytest.raises(TypeError, match="cpu_offload='yes' is not known"):
        settings.offload_of("yes", CPU)


def test_names():
    for name in FSDPStrategy.get_registered_strategies():
        assert type(StrategyRegistry.get(name)) is FSDPStrategy
    assert StrategyRegistry.get("fsdp_cpu_offload").cpu_offload is True
    trainer = Trainer(strategy="fsdp", accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    assert trainer.precision_plugin.precision == "32-true"
    with pytest.raises(ValueError, match="precision='64-true'"):
        Trainer(strategy="fsdp", accelerator="cpu", devices=2, precision="64-true")
