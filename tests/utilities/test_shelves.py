"""The modules that only hand on what lives elsewhere: each name is the thing itself."""

from __future__ import annotations

import importlib

import pytest

SAME = {
    "core": {"LightningModule": "module", "LightningDataModule": "datamodule"},
    "core.datamodule": {"LightningDataModule": "datamodule"},
    "core.hooks": {"CheckpointHooks": "datahooks", "DataHooks": "datahooks", "ModelHooks": "modulehooks.ModuleHooks"},
    "core.mixins": {"HyperparametersMixin": "hparams"},
    "core.module": {"LightningModule": "module"},
    "core.optimizer": {"LightningOptimizer": "optim", "do_nothing_closure": "optim"},
    "core.saving": {
        "convert": "checkpoint.hyperparameters",
        "load_hparams_from_tags_csv": "checkpoint.hyperparameters",
        "load_hparams_from_yaml": "checkpoint.hyperparameters",
        "save_hparams_to_tags_csv": "checkpoint.hyperparameters",
        "save_hparams_to_yaml": "checkpoint.hyperparameters",
        "update_hparams": "checkpoint.hyperparameters",
        "CHECKPOINT_PAST_HPARAMS_KEYS": "checkpoint.load",
    },
    "fabric.utilities": {
        "AttributeDict": "hparams",
        "LightningEnum": "types.CaselessEnum",
        "disable_possible_user_warnings": "ranks",
        "rank_zero_deprecation": "ranks",
        "rank_zero_info": "ranks",
        "rank_zero_only": "ranks",
        "rank_zero_warn": "ranks",
        "suggested_max_num_workers": "data.loaders",
    },
    "fabric.utilities.data": {"AttributeDict": "hparams"},
    "fabric.utilities.enums": {"LightningEnum": "types.CaselessEnum"},
    "fabric.utilities.exceptions": {"MisconfigurationException": "errors"},
    "fabric.utilities.rank_zero": {
        "LightningDeprecationWarning": "errors",
        "WarningCache": "ranks",
        "rank_prefixed_message": "ranks",
        "rank_zero_debug": "ranks",
        "rank_zero_deprecation": "ranks",
        "rank_zero_info": "ranks",
        "rank_zero_only": "ranks",
        "rank_zero_warn": "ranks",
    },
    "fabric.utilities.seed": {
        "max_seed_value": "fabric.seed.MAX_SEED",
        "min_seed_value": "fabric.seed.MIN_SEED",
        "pl_worker_init_function": "fabric.seed",
        "reset_seed": "fabric.seed",
        "seed_everything": "fabric.seed",
    },
    "fabric.utilities.types": {"CollectibleGroup": "types", "Optimizable": "types", "Steppable": "types"},
    "fabric.utilities.warnings": {"PossibleUserWarning": "errors", "disable_possible_user_warnings": "ranks"},
    "utilities": {
        "AttributeDict": "hparams",
        "CombinedLoader": "data",
        "GradClipAlgorithmType": "types",
        "LightningEnum": "types.CaselessEnum",
        "disable_possible_user_warnings": "ranks",
        "find_shared_parameters": "utilities.parameter_tying",
        "grad_norm": "utilities.grads",
        "is_picklable": "hparams",
        "is_shared_filesystem": "fabric.utilities.distributed",
        "measure_flops": "fabric.utilities.throughput",
        "move_data_to_device": "fabric.utilities.apply_func",
        "rank_zero_deprecation": "ranks",
        "rank_zero_info": "ranks",
        "rank_zero_only": "ranks",
        "rank_zero_warn": "ranks",
        "set_shared_parameters": "utilities.parameter_tying",
        "suggested_max_num_workers": "data.loaders",
    },
    "utilities.combined_loader": {"CombinedLoader": "data"},
    "utilities.compile": {"from_compiled": "compiled", "to_uncompiled": "compiled"},
    "utilities.enums": {"GradClipAlgorithmType": "types", "LightningEnum": "types.CaselessEnum"},
    "utilities.exceptions": {"MisconfigurationException": "errors", "SIGTERMException": "errors"},
    "utilities.model_summary": {
        "LayerSummary": "summary",
        "ModelSummary": "summary",
        "get_formatted_model_size": "summary",
        "get_human_readable_count": "summary",
        "parse_batch_shape": "summary",
        "summarize": "summary",
        "UNKNOWN_SIZE": "summary",
    },
    "utilities.migration": {
        "migrate_checkpoint": "utilities.migration.utils",
        "pl_legacy_patch": "checkpoint.unpickler",
    },
    "utilities.model_summary.model_summary": {"LEFTOVER_PARAMS_NAME": "summary", "ModelSummary": "summary"},
    "utilities.parsing": {"AttributeDict": "hparams", "clean_namespace": "hparams", "save_hyperparameters": "hparams"},
    "utilities.rank_zero": {"WarningCache": "ranks", "rank_zero_only": "ranks", "rank_zero_warn": "ranks"},
    "utilities.seed": {"isolate_rng": "fabric.seed"},
    "utilities.types": {
        "STEP_OUTPUT": "types",
        "LRSchedulerConfig": "optim",
        "LRSchedulerConfigType": "types",
        "OptimizerConfig": "types",
        "OptimizerLRSchedulerConfig": "types",
    },
    "utilities.warnings": {"PossibleUserWarning": "errors"},
}


@pytest.mark.parametrize("shelf", SAME)
def test_names_are_the_things_themselves(shelf: str) -> None:
    module = importlib.import_module(f"fulmen.{shelf}")
    for name, home in SAME[shelf].items():
        place, _, own = home.rpartition(".")
        renamed = own[:1].isupper()
        source = importlib.import_module(f"fulmen.{place if renamed else home}")
        assert getattr(module, name) is getattr(source, own if renamed else name), name
        assert name in module.__all__


def test_unknown_names_are_attribute_errors() -> None:
    import fulmen.utilities

    with pytest.raises(AttributeError, match=r"module 'fulmen.utilities' has no attribute 'gradnorm'"):
        fulmen.utilities.gradnorm  # noqa: B018


def test_the_precision_of_floats() -> None:
    import torch

    from fulmen import utilities

    assert torch.finfo(torch.float16).eps == utilities.FLOAT16_EPSILON
    assert torch.finfo(torch.float32).eps == utilities.FLOAT32_EPSILON
    assert torch.finfo(torch.float64).eps == utilities.FLOAT64_EPSILON
