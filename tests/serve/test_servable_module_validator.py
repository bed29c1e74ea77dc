from __future__ import annotations

import socket
import sys
import threading
import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen
from fulmen.errors import MisconfigurationException
from fulmen.serve import ServableModule, ServableModuleValidator

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:fastapi|starlette|uvicorn")


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Served(Net, ServableModule):
    """Adds 1, in eval mode only."""

    def configure_payload(self) -> dict[str, Any]:
        return {"body": {"x": [0.0, 1.0]}}

    def configure_serialization(self) -> Any:
        return {"x": torch.tensor}, {"y": torch.Tensor.tolist}

    def serve_step(self, x: torch.Tensor) -> dict[str, Any]:  # type: ignore[override]
        assert not self.training
        return {"y": x + 1}

    def configure_response(self) -> dict[str, Any]:
        return {"y": [1.0, 2.0]}


class Wrong(Served):
    def configure_response(self) -> dict[str, Any]:
        return {"y": [7.0]}


class Breaks(Served):
    def serve_step(self, x: torch.Tensor) -> dict[str, Any]:
        raise KeyError("gone")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fit(module: Net, validator: ServableModuleValidator) -> None:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = fulmen.Trainer(accelerator="cpu", max_epochs=1, callbacks=validator, **dict.fromkeys(off, False))
    trainer.fit(module, DataLoader(torch.ones(1, 2)))


def test_a_module_that_can_be_served(port: int) -> None:
    validator, module = ServableModuleValidator(port=port), Served()
    assert validator.successful is None
    fit(module, validator)
    assert validator.successful
    assert validator.resp == {"y": [1.0, 2.0]}
    assert validator.state_dict() == {"successful": True, "optimization": None, "server": "fastapi"}
    assert module.training
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # the server is gone


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Net, "does not inherit from `fulmen.serve.ServableModule`"),
        (Wrong, r"the answer is \{'y': \[1.0, 2.0\]\}, expected \{'y': \[7.0\]\}"),
        (Breaks, "the server answered 500: .*KeyError: 'gone'"),
    ],
)
def test_a_module_that_cannot(kind: type[Net], reason: str, port: int) -> None:
    with pytest.raises(MisconfigurationException, match=f"`{kind.__name__}` cannot be served: .*{reason}"):
        fit(kind(), ServableModuleValidator(port=port))
    validator = ServableModuleValidator(port=port, exit_on_failure=False)
    with pytest.warns(UserWarning, match=reason):
        fit(kind(), validator)
    assert validator.successful is False


def test_no_thread_stays_behind(port: int) -> None:
    class Slow(Served):
        def serve_step(self, x: torch.Tensor) -> dict[str, Any]:  # type: ignore[override]
            time.sleep(0.5)
            return super().serve_step(x)

    before = set(threading.enumerate())
    with pytest.raises(MisconfigurationException, match=r"did not answer in 0.2 s"):
        fit(Slow(), ServableModuleValidator(port=port, timeout=0.2))  # type: ignore[arg-type]
    fit(Served(), ServableModuleValidator(port=port))
    give_up = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < give_up:  # the server's workers take a moment
        time.sleep(0.01)
    assert set(threading.enumerate()) - before == set()


def test_imports_of_the_server_may_take_longer_than_its_answer(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    load = uvicorn.Config.load
    monkeypatch.setattr(uvicorn.Config, "load", lambda config: (time.sleep(0.6), load(config)))
    validator = ServableModuleValidator(port=port, timeout=0.5)  # type: ignore[arg-type]
    fit(Served(), validator)
    assert validator.successful


def test_the_answer_of_another_server_does_not_count(port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(MisconfigurationException, match=rf"no server at http://127.0.0.1:{port}: .*another `port`"),
    ):
        fit(Served(), ServableModuleValidator(port=port))


def test_what_is_not_possible() -> None:
    with pytest.raises(NotImplementedError, match="optimization='onnx'"):
        ServableModuleValidator(optimization="onnx")


def test_fastapi_is_named_when_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[serve\]"'):
        ServableModuleValidator()
