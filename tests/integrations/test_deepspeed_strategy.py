"""What DeepSpeed is asked for, by a stand-in that writes it down; the package itself: tests/distributed."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.errors import MisconfigurationException
from fulmen.fabric.precision import DeepSpeedPrecision, MixedPrecision
from fulmen.fabric.strategies import StrategyRegistry
from fulmen.integrations import deepspeed_config
from processes import RanksFailed, run_ranks

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Engine(nn.Module):
    """Computes as plain PyTorch does, and writes down what it is asked for."""

    def __init__(self, model, optimizer, config, calls):
        super().__init__()
        self.module, self.client_optimizer, self.config, self.calls = model, optimizer, config, calls
        self.optimizer = optimizer
        self.boundary = None

    def forward(self, *args):
        self.calls.append("forward")
        return self.module(*args)

    def set_gradient_accumulation_boundary(self, boundary):
        self.boundary = boundary

    def backward(self, loss, scale_wrt_gas=True):
        self.calls.append(("backward", self.boundary, scale_wrt_gas))
        loss.backward()

    def step(self):
        self.calls.append("step")
        self.client_optimizer.step()

    def save_checkpoint(self, directory, client_state, tag, exclude_frozen_parameters):
        self.calls.append(("save", tag, exclude_frozen_parameters))
        folder = Path(directory, tag)
        folder.mkdir(parents=True)
        torch.save({"client": client_state, "module": self.module.state_dict()}, folder / "rank_0.pt")

    def load_checkpoint(self, directory, tag, load_module_strict, load_lr_scheduler_states):
        self.calls.append(("load", tag, load_module_strict, load_lr_scheduler_states))
        content = torch.load(Path(directory, tag, "rank_0.pt"), weights_only=False)
        self.module.load_state_dict(content["module"])
        return directory, content["client"] | {"ds_version": "0"}

    def destroy(self):
        self.calls.append("destroy")


def stand_in(kind="cpu"):
    """Modules for `sys.modules`, and what was called."""
    calls, engines = [], []
    package, accelerator, utils = (ModuleType(f"deepspeed{name}") for name in ("", ".accelerator", ".utils"))

    def initialize(model, optimizer, model_parameters, config, dist_init_required):
        engines.append(Engine(model, optimizer, config, calls))
        return engines[-1], optimizer, None, None

    package.initialize = initialize
    package.init_distributed = lambda **options: calls.append(("init", options["dist_backend"]))
    accelerator.get_accelerator = lambda: SimpleNamespace(device_name=lambda: kind)
    utils.logger = SimpleNamespace(setLevel=lambda level: None)
    return {module.__name__: module for module in (package, accelerator, utils)}, calls, engines


@pytest.fixture
def deepspeed(monkeypatch):
    modules, _, _ = stand_in()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class TwoOptimizers(Net):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD([self.layer.weight], 0.1), torch.optim.SGD([self.layer.bias], 0.1)]


def data():
    return DataLoader(torch.ones(10, 4), batch_size=2)


def on_a_rank(work, *args):
    modules, calls, engines = stand_in()
    sys.modules.update(modules)
    return globals()[work](calls, engines, *args)


def alone(work, *args):
    return run_ranks(on_a_rank, 1, work, *args)[0]


def fit(calls, engines, settings):
    module = Net()
    trainer = Trainer(strategy="deepspeed", **QUIET | settings)
    trainer.fit(module, data())
    return calls, engines[0].config, module.layer.weight.detach()


def test_a_fit_goes_through_the_engine():
    calls, config, weight = alone("fit", {})
    assert calls == [("init", "gloo"), *["forward", ("backward", True, False), "step"] * 5, "destroy"]
    assert config["zero_optimization"]["stage"] == 2
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 1
    assert config["gradient_clipping"] == 0.0
    module = Net()
    Trainer(**QUIET).fit(module, data())
    assert torch.equal(module.layer.weight, weight)


def test_windows_are_the_loops():
    calls, config, _ = alone("fit", {"accumulate_grad_batches": 2})
    boundaries = [call[1] for call in calls if call[0] == "backward"]
    assert boundaries == [False, True, False, True, True]  # the last batch closes its window
    assert calls.count("step") == 3
    assert config["gradient_accumulation_steps"] == 2


def test_clipping_is_the_engines():
    _, config, _ = alone("fit", {"gradient_clip_val": 0.5})
    assert config["gradient_clipping"] == 0.5
    with pytest.raises(RanksFailed, match="clips gradients by norm only"):
        alone("fit", {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"})


@pytest.mark.parametrize(("precision", "key"), [("bf16-mixed", "bf16"), ("16-true", "fp16")])
def test_precision(precision, key):
    config = alone("configure", precision)
    assert config[key]["enabled"] is True
    assert ("initial_scale_power" in config[key]) is (key == "fp16")


def configure(calls, engines, precision):
    strategy = StrategyRegistry.get("deepspeed")
    strategy.precision_plugin = DeepSpeedPrecision(precision)
    return strategy._engine_config()


def save_and_load(calls, engines, directory):
    trainer = Trainer(strategy="deepspeed", **QUIET)
    trainer.fit(Net(), data())
    module = Net()

    class Saves(Net):
        def on_train_epoch_end(self):
            self.trainer.save_checkpoint(f"{directory}/saved")
            self.trainer.save_checkpoint(f"{directory}/saved")  # in the place of the former

    Trainer(strategy="deepspeed", **QUIET).fit(Saves(), data())
    del calls[:]
    trainer = Trainer(strategy="deepspeed", **QUIET | {"max_epochs": 2})
    trainer.fit(module, data(), ckpt_path=f"{directory}/saved")
    return calls, trainer.global_step, sorted(path.name for path in Path(directory).iterdir())


def test_checkpoints_are_the_engines(tmp_path):
    calls, steps, files = alone("save_and_load", str(tmp_path))
    assert ("load", "checkpoint", True, False) in calls
    assert calls.count("step") == 5
    assert steps == 10
    assert files == ["saved"]


def fit_two(calls, engines):
    Trainer(strategy="deepspeed", **QUIET).fit(TwoOptimizers(), data())


def test_one_optimizer():
    with pytest.raises(RanksFailed, match=r"DeepSpeed trains with one optimizer, and there are 2\. Put the parameters"):
        alone("fit_two")


def test_the_extra_is_named_where_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MisconfigurationException, match=r'pip install "fulmen\[deepspeed\]"'):
        Trainer(accelerator="cpu", strategy="deepspeed_stage_3")


def test_a_device_deepspeed_does_not_compute_on(monkeypatch):
    modules, _, _ = stand_in("cuda")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(RuntimeError, match="computes on 'cuda' here, and was given cpu"):
        Trainer(accelerator="cpu", devices=1, strategy="deepspeed")


@pytest.mark.parametrize(
    ("name", "stage", "offloaded"),
    [
        ("deepspeed", 2, {}),
        ("deepspeed_stage_1", 1, {}),
        ("deepspeed_stage_2_offload", 2, {"offload_optimizer": "cpu"}),
        ("deepspeed_stage_3", 3, {}),
        ("deepspeed_stage_3_offload", 3, {"offload_optimizer": "cpu", "offload_param": "cpu"}),
        ("deepspeed_stage_3_offload_nvme", 3, {"offload_optimizer": "nvme", "offload_param": "nvme"}),
    ],
)
def test_names(deepspeed, name, stage, offloaded):
    strategy = StrategyRegistry.get(name)
    zero = strategy.config["zero_optimization"]
    assert zero["stage"] == stage
    assert strategy.zero_stage_3 is strategy.needs_equal_batches is (stage == 3)
    assert {key: zero[key]["device"] for key in ("offload_optimizer", "offload_param") if key in zero} == offloaded


def test_only_its_own_precision(deepspeed):
    strategy = StrategyRegistry.get("deepspeed")
    assert type(strategy.precision_plugin) is DeepSpeedPrecision
    with pytest.raises(TypeError, match="works with a DeepSpeedPrecision"):
        strategy.precision_plugin = MixedPrecision("bf16-mixed", "cpu")


def test_a_configuration_of_the_users(deepspeed, monkeypatch, tmp_path):
    given = {"zero_optimization": {"stage": 1}, "train_micro_batch_size_per_gpu": 7}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(given))
    kind = StrategyRegistry.entry("deepspeed").target
    assert kind(config=given).config == kind(config=file).config == given
    monkeypatch.setenv("PL_DEEPSPEED_CONFIG_PATH", str(file))
    assert kind().config == given
    assert kind(config={"zero_optimization": {"stage": 3}}).zero_stage_3


@pytest.mark.parametrize(("content", "said"), [(None, "There is no"), ("{", "is no JSON"), ("[]", "a JSON object")])
def test_a_configuration_that_cannot_be_read(tmp_path, content, said):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=said):
        deepspeed_config.read(file)


def fit_with_config(calls, engines, config, settings):
    kind = StrategyRegistry.entry("deepspeed").target
    Trainer(strategy=kind(config=config), **QUIET | settings).fit(Net(), data())


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        ({"gradient_accumulation_steps": 2}, {}, r"Trainer\(accumulate_grad_batches=2\)"),
        ({"gradient_clipping": 1.0}, {"gradient_clip_val": 0.5}, "would be clipped twice"),
    ],
)
def test_what_the_trainer_says_is_not_said_twice(config, settings, said):
    with pytest.raises(RanksFailed, match=said):
        alone("fit_with_config", config, settings)
