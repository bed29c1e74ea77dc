from __future__ import annotations

import sys
from argparse import Namespace

import pytest
import torch
from torch import nn

from fulmen.checkpoint.hyperparameters import dump_hyperparameters
from fulmen.checkpoint.load import load_datamodule, load_module
from fulmen.datamodule import LightningDataModule
from fulmen.errors import CheckpointError
from fulmen.hparams import restricted_classmethod
from fulmen.module import LightningModule


class Net(LightningModule):
    def __init__(self, width, lr=0.1, **others):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, width)


class Packed(LightningModule):
    def __init__(self, conf, lr=0.1):
        super().__init__()
        self.save_hyperparameters(conf)
        self.conf, self.lr = conf, lr
        self.layer = nn.Linear(2, 2)


class Plain(LightningModule):
    def __init__(self, lr=0.1):
        super().__init__()
        self.lr = lr
        self.layer = nn.Linear(2, 2)


class Data(LightningDataModule):
    def __init__(self, size, batch_size=1):
        super().__init__()
        self.save_hyperparameters()
        self.loaded = None

    def load_state_dict(self, state_dict):
        self.loaded = state_dict


def save(path, *owners, **entries):
    """A checkpoint file of the given objects, as the trainer would write it."""
    checkpoint = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.6.6", "state_dict": {}, "loops": {}}
    for owner in owners:
        checkpoint.update(dump_hyperparameters(owner))
        if isinstance(owner, nn.Module):
            checkpoint["state_dict"] = owner.state_dict()
    torch.save({**checkpoint, **entries}, path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.ckpt"


def test_saved_arguments_and_weights(path):
    net = Net(3, extra=5)
    loaded = Net.load_from_checkpoint(save(path, net))
    assert loaded.hparams == {"width": 3, "lr": 0.1, "extra": 5}
    assert torch.equal(loaded.layer.weight, net.layer.weight)


def test_given_arguments_win(path):
    assert Net.load_from_checkpoint(save(path, Net(3)), lr=0.5).hparams == {"width": 3, "lr": 0.5}


def test_an_open_file_and_a_url(path):
    save(path, Net(3))
    with open(path, "rb") as stream:
        assert Net.load_from_checkpoint(stream).hparams.width == 3
    assert Net.load_from_checkpoint(f"file://{path}").hparams.width == 3


def test_arguments_that_the_class_does_not_take_are_dropped(path):
    assert Plain.load_from_checkpoint(save(path, Packed({"lr": 0.5, "x": 1}), hparams_name="kwargs")).lr == 0.5


@pytest.mark.parametrize("conf", [{"x": 1}, Namespace(x=1)])
def test_one_packed_argument(path, conf):
    save(path, Packed(conf))
    assert Packed.load_from_checkpoint(path).conf == {"x": 1}
    assert Packed.load_from_checkpoint(path).conf.x == 1
    overridden = Packed.load_from_checkpoint(path, x=5, y=6, lr=0.7)
    assert (overridden.conf.x, overridden.conf.y, overridden.lr) == (5, 6, 0.7)
    assert Packed.load_from_checkpoint(path, conf={"n": 1}).conf == {"n": 1}


def test_an_argument_called_kwargs_is_not_taken_for_a_packed_one(path):
    class Open(LightningModule):
        def __init__(self, **kwargs):
            super().__init__()
            self.save_hyperparameters()

    with pytest.warns(UserWarning, match="is empty"):
        assert Open.load_from_checkpoint(save(path, Open(a=1))).hparams == {"a": 1}


def test_names_of_old_versions(path):
    save(path, Net(3), hyper_parameters={"lr": 3.0}, hparams={"width": 3, "lr": 1.0}, module_arguments={"lr": 2.0})
    assert Net.load_from_checkpoint(path).hparams == {"width": 3, "lr": 3.0}


def test_hparams_file_replaces_the_saved_ones(path, tmp_path):
    save(path, Net(3))
    (tmp_path / "a.yaml").write_text("width: 3\nlr: 0.5\n")
    (tmp_path / "a.csv").write_text("key,value\nwidth,3\nlr,0.25\n")
    assert Net.load_from_checkpoint(path, hparams_file=tmp_path / "a.yaml").hparams.lr == 0.5
    assert Net.load_from_checkpoint(path, hparams_file=str(tmp_path / "a.csv")).hparams.lr == 0.25
    with pytest.raises(ValueError, match=r"is a .yaml, .yml or .csv file, and 'a.txt' was given"):
        Net.load_from_checkpoint(path, hparams_file="a.txt")
    with pytest.warns(RuntimeWarning, match="no file"), pytest.raises(TypeError, match="width"):
        Net.load_from_checkpoint(path, hparams_file=tmp_path / "missing.yml")


def test_it_is_a_class_method_only(path):
    save(path, Net(3))
    with pytest.raises(TypeError, match=r"loaded = Net.load_from_checkpoint\(...\)"):
        Net(3).load_from_checkpoint(path)
    assert hasattr(Net(3), "load_from_checkpoint")


def test_restricted_classmethod_is_a_class_method_with_its_documentation():
    class A:
        @restricted_classmethod
        def make(cls, value):
            """Makes."""
            return cls, value

    class B(A):
        pass

    assert isinstance(A.__dict__["make"], classmethod)
    assert B.make(3) == (B, 3)
    assert A().make.__doc__ == A.make.__doc__ == "Makes."


def test_keys_that_do_not_fit(path):
    save(path, Net(3), state_dict={"layer.weight": torch.zeros(3, 2), "other": torch.zeros(1)})
    with pytest.raises(
        CheckpointError, match=r"does not fit Net:\n  missing in the checkpoint:\n    layer.bias"
    ) as caught:
        Net.load_from_checkpoint(path)
    assert caught.value.path == str(path)
    with pytest.warns(UserWarning, match="Keys of the") as warned:
        loaded = Net.load_from_checkpoint(path, strict=False)
    assert [str(each.message) for each in warned] == [
        "Keys of the module that the checkpoint lacks: layer.bias",
        "Keys of the checkpoint that the module lacks: other",
    ]
    assert torch.equal(loaded.layer.weight, torch.zeros(3, 2))


class Lenient(Net):
    def __init__(self, width, **others):
        super().__init__(width, **others)
        self.strict_loading = False


def test_strict_loading_of_the_module(path):
    save(path, Net(3), state_dict={"layer.weight": torch.zeros(3, 2)})
    with pytest.warns(UserWarning, match="checkpoint lacks: layer.bias"):
        Lenient.load_from_checkpoint(path)
    with pytest.raises(ValueError, match=r"strict=True\)` contradicts `Lenient.strict_loading = False`"):
        Lenient.load_from_checkpoint(path, strict=True)


def test_configure_model_and_on_load_checkpoint_come_before_the_weights(path):
    calls = []

    class Late(LightningModule):
        def configure_model(self):
            calls.append("configure_model")
            self.layer = nn.Linear(2, 2)

        def on_load_checkpoint(self, checkpoint):
            calls.append("on_load_checkpoint")
            checkpoint["state_dict"] = {
                key.removeprefix("old."): value for key, value in checkpoint["state_dict"].items()
            }

        def load_state_dict(self, *args, **kwargs):
            calls.append("load_state_dict")
            return super().load_state_dict(*args, **kwargs)

    weights = {"old.layer.weight": torch.ones(2, 2), "old.layer.bias": torch.ones(2)}
    loaded = Late.load_from_checkpoint(save(path, state_dict=weights))
    assert calls == ["configure_model", "on_load_checkpoint", "load_state_dict"]
    assert torch.equal(loaded.layer.bias, torch.ones(2))


def test_the_module_goes_to_the_device_of_the_weights(path):
    class Assigning(Net):
        def __init__(self, width, **others):
            super().__init__(width, **others)
            self.register_buffer("scratch", torch.zeros(1), persistent=False)

        def load_state_dict(self, state_dict, strict=True):
            return super().load_state_dict(state_dict, strict, assign=True)

    loaded = Assigning.load_from_checkpoint(save(path, Net(3)), map_location="meta")
    assert loaded.scratch.device.type == loaded.device.type == "meta"


@pytest.mark.parametrize(
    "place",
    ["cpu", torch.device("cpu"), {"cpu": "cpu"}, lambda storage, location: storage],
    ids=["name", "device", "dict", "function"],
)
def test_map_location_as_in_torch(path, place):
    module = Net(3)
    loaded = Net.load_from_checkpoint(save(path, module), map_location=place)
    assert torch.equal(loaded.layer.weight, module.layer.weight)
    assert loaded.device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device exists")
def test_tensors_of_a_device_that_is_not_here_go_to_the_cpu(path):
    save(path, Net(3))
    raw = path.read_bytes()
    # a storage's location is pickled as a counted string; "cpu" and the name of a missing device have equal length
    assert raw.count(b"\x03\x00\x00\x00cpu") == 1
    path.write_bytes(raw.replace(b"\x03\x00\x00\x00cpu", b"\x03\x00\x00\x00mps"))
    if not torch.backends.mps.is_available():
        assert Net.load_from_checkpoint(path).layer.weight.device.type == "cpu"


def test_something_else_than_a_checkpoint(path):
    torch.save(Net(3).state_dict(), path)
    with pytest.raises(CheckpointError, match="plain state dict"):
        Net.load_from_checkpoint(path, width=3)
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt"):
        Net.load_from_checkpoint(path.with_name("missing.ckpt"))


@pytest.mark.parametrize("instantiator", ["os.system", "fulmen.cli.instantiate_module.evil", 3])
def test_no_function_is_run_because_a_file_names_it(path, instantiator):
    save(path, Net(3), hyper_parameters={"width": 3, "_instantiator": instantiator})
    with pytest.raises(ValueError, match="could be any code"):
        Net.load_from_checkpoint(path)


def test_what_a_command_line_saved(path):
    name = "lightning.pytorch.cli.instantiate_module"
    arguments = {"width": 3, "_instantiator": name}
    assert Net.load_from_checkpoint(save(path, Net(3), hyper_parameters=arguments)).hparams == {"width": 3, "lr": 0.1}
    arguments["_class_path"] = f"{__name__}.Lenient"
    assert type(Net.load_from_checkpoint(save(path, Net(3), hyper_parameters=arguments))) is Lenient
    arguments["_class_path"] = "antigravity.Net"
    with pytest.raises(ValueError, match=r"'antigravity\.Net', which is not an imported subclass of Net"):
        Net.load_from_checkpoint(save(path, Net(3), hyper_parameters=arguments))
    assert "antigravity" not in sys.modules


def test_datamodule(path):
    save(path, Data(4), **{Data.__qualname__: {"position": 3}})
    loaded = Data.load_from_checkpoint(path, batch_size=8)
    assert loaded.hparams == {"size": 4, "batch_size": 8}
    assert loaded.loaded == {"position": 3}
    assert load_datamodule(Data, path).hparams == {"size": 4, "batch_size": 1}


def test_module_and_datamodule_in_one_file(path):
    save(path, Net(3), Data(4))
    assert load_module(Net, path).hparams == {"width": 3, "lr": 0.1}
    assert load_datamodule(Data, path).loaded is None
    assert load_datamodule(Data, path).hparams == {"size": 4, "batch_size": 1}
    with pytest.raises(TypeError, match=r"cannot be called on an instance"):
        Data(1).load_from_checkpoint(path)
