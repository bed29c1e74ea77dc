from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen
from fulmen.extras import available

X = torch.tensor([[1.0, 2.0]])


class Net(fulmen.LightningModule):
    """The dropout tells whether it was exported in eval mode, the hook whether inputs pass it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        self.dropout = torch.nn.Dropout(0.9)
        self.transferred = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.layer(x))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.transferred += 1
        return batch


@pytest.fixture
def net() -> Net:
    net = Net()
    net.layer.eval()  # modes are given back one by one
    return net


def expected(net: Net) -> Any:
    return net.layer(X).detach()


def is_as_before(net: Net) -> bool:
    return net.training and net.dropout.training and not net.layer.training


# ------------------------------------------------------------------------------------------------ ONNX

onnx = pytest.mark.skipif(not (available("onnx") and available("onnxscript")), reason="onnx is not installed")
quiet_torch = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def evaluate(file: Any) -> Any:
    import onnx.reference

    session = onnx.reference.ReferenceEvaluator(str(file) if isinstance(file, Path) else file)
    return torch.from_numpy(session.run(None, {session.input_names[0]: X.numpy()})[0])


@onnx
class TestOnnx:
    pytestmark = quiet_torch

    @pytest.mark.slow
    def test_to_a_path(self, net: Net, tmp_path: Path) -> None:
        net.example_input_array = X
        program = net.to_onnx(tmp_path / "net.onnx", verbose=False)
        assert isinstance(program, torch.onnx.ONNXProgram)
        torch.testing.assert_close(evaluate(tmp_path / "net.onnx"), expected(net))
        assert net.transferred == 1
        assert is_as_before(net)

    @pytest.mark.slow
    def test_a_program_only(self, net: Net) -> None:
        program = net.to_onnx(input_sample={"x": X}, verbose=False)
        torch.testing.assert_close(evaluate(program.model_proto), expected(net))

    @pytest.mark.parametrize("dynamo", [pytest.param(True, marks=pytest.mark.slow), False])
    def test_to_an_open_file(self, net: Net, dynamo: bool) -> None:
        file = io.BytesIO()
        net.to_onnx(file, X, dynamo=dynamo, verbose=False)
        torch.testing.assert_close(evaluate(file.getvalue()), expected(net))

    def test_several_inputs(self, tmp_path: Path) -> None:
        class Adds(Net):
            def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
                return x + y

        Adds().to_onnx(tmp_path / "adds.onnx", (X, X), dynamo=False, input_names=["x", "y"])
        import onnx.reference

        session = onnx.reference.ReferenceEvaluator(str(tmp_path / "adds.onnx"))
        assert session.run(None, {"x": X.numpy(), "y": X.numpy()})[0].tolist() == [[2.0, 4.0]]

    def test_there_must_be_an_input(self, net: Net) -> None:
        with pytest.raises(ValueError, match=r"`to_onnx` needs an input of `forward`\. Give `input_sample`"):
            net.to_onnx("net.onnx")
        assert is_as_before(net)

    def test_the_old_exporter_needs_a_file(self, net: Net) -> None:
        with pytest.raises(ValueError, match="needs a file"):
            net.to_onnx(dynamo=False, input_sample=X)


def test_onnx_is_named_when_missing(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[onnx\]"'):
        net.to_onnx("net.onnx", X)


# ------------------------------------------------------------------------------------------------ TorchScript


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="TorchScript does not support this Python")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestTorchScript:
    @pytest.mark.parametrize("method", ["script", "trace"])
    def test_it_computes_the_same(self, net: Net, method: str) -> None:
        net.example_input_array = X
        scripted = net.to_torchscript(method=method)
        assert isinstance(scripted, torch.jit.ScriptModule)
        torch.testing.assert_close(scripted(X), expected(net))
        assert is_as_before(net)
        assert net.transferred == (method == "trace")

    def test_in_the_hands_of_a_trainer(self, net: Net, tmp_path: Path) -> None:
        trainer = fulmen.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        trainer.predict(net, DataLoader(X))
        net.to_torchscript(tmp_path / "deep" / "net.pt")
        assert net.trainer is trainer
        torch.testing.assert_close(torch.jit.load(tmp_path / "deep" / "net.pt")(X), expected(net))

    def test_modules_in_modules(self, net: Net) -> None:
        class Outer(fulmen.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.inner = net

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.inner(x)

        torch.testing.assert_close(Outer().to_torchscript()(X), expected(net))

    def test_to_trace_there_must_be_inputs(self, net: Net) -> None:
        with pytest.raises(ValueError, match=r"`to_torchscript\(method='trace'\)` needs an input .* `example_inputs`"):
            net.to_torchscript(method="trace")

    def test_other_methods(self, net: Net) -> None:
        with pytest.raises(ValueError, match=r"method='temp'\)`: expected 'script' or 'trace'"):
            net.to_torchscript(method="temp")


# ------------------------------------------------------------------------------------------------ TensorRT


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the foreign package, which needs a GPU even to be imported."""
    module: Any = ModuleType("torch_tensorrt")
    module.calls = []
    module.compile = lambda model, **arguments: module.calls.append((model.training, arguments)) or "compiled"
    module.save = lambda compiled, path, **arguments: module.calls.append((compiled, path, arguments))
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    return module


def test_tensorrt_gets_the_module_in_eval_mode(net: Net, tensorrt: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.ep"
    assert net.to_tensorrt(path, X, default_device="cpu", min_block_size=2) == "compiled"
    (training, arguments), (compiled, saved_at, how) = tensorrt.calls
    assert not training
    assert arguments.keys() == {"ir", "inputs", "min_block_size"}
    assert (compiled, saved_at) == ("compiled", str(path))
    assert (how["output_format"], how["retrace"]) == ("exported_program", False)
    assert is_as_before(net)


def test_tensorrt_saves_torchscript_as_such(net: Net, tensorrt: Any) -> None:
    with pytest.raises(ValueError, match="`output_format='torchscript'`"):
        net.to_tensorrt("net.ts", X, ir="ts", default_device="cpu")


def test_tensorrt_needs_an_input(net: Net, tensorrt: Any) -> None:
    with pytest.raises(ValueError, match="`to_tensorrt` needs an input"):
        net.to_tensorrt(default_device="cpu")


def test_tensorrt_is_named_when_missing(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(ModuleNotFoundError, match="torch_tensorrt"):
        net.to_tensorrt(input_sample=X)
