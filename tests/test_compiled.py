from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen
from fulmen.compiled import from_compiled, keep_logging_out, to_uncompiled

DATA = DataLoader(torch.arange(3.0)[:, None].expand(-1, 2), batch_size=1)  # type: ignore[arg-type]

# torch says so itself where graphs break; see test_logging_stays_out_of_the_graphs
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]


class Graphs:
    """A compiler that runs what it gets, and keeps the names of its operations."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, graph: Any, example: Any) -> Any:
        self.seen.append([node.name for node in graph.graph.nodes if node.op != "placeholder"])
        return graph.forward


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.traced: list[bool] = []

    def forward(self, x: Any) -> Any:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self(batch).pow(2).mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"double": loss * 2})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val", self(batch).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        loss = self(batch).pow(2).mean()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.log("loss", loss)


@pytest.fixture
def graphs() -> Any:
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@pytest.fixture
def trainer() -> Any:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps")
    return fulmen.Trainer(accelerator="cpu", max_epochs=1, **dict.fromkeys(off, False))


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def plainly_fitted(module: fulmen.LightningModule) -> dict[str, Any]:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps")
    trainer = fulmen.Trainer(accelerator="cpu", max_epochs=1, **dict.fromkeys(off, False))
    trainer.fit(module, DATA, DATA if not isinstance(module, Manual) else None)
    return {"metrics": trainer.callback_metrics, "weights": weights(module)}


@pytest.mark.parametrize("kind", [Net, Manual])
def test_a_compiled_module_trains_as_the_plain_one(kind: Any, trainer: Any, graphs: Any) -> None:
    net = kind()
    expected = plainly_fitted(copy.deepcopy(net))
    compiled = torch.compile(net, backend=graphs)
    trainer.fit(compiled, DATA, DATA if kind is Net else None)
    assert graphs.seen
    assert trainer.lightning_module is net
    assert trainer.global_step == 3
    torch.testing.assert_close(weights(net), expected["weights"])
    torch.testing.assert_close(dict(trainer.callback_metrics), dict(expected["metrics"]))


def test_logging_stays_out_of_the_graphs(trainer: Any, graphs: Any) -> None:
    trainer.fit(torch.compile(Net(), backend=graphs), DATA)
    # the loss, then what is logged; nothing of the book's arithmetic
    assert [len(graph) for graph in graphs.seen] == [4, 2]


def test_every_entry_point_takes_it(trainer: Any, graphs: Any) -> None:
    compiled = torch.compile(Net(), backend=graphs)
    assert list(trainer.validate(compiled, DATA, verbose=False)[0]) == ["val"]
    assert len(trainer.predict(compiled, DATA)) == 3
    with pytest.raises(fulmen.errors.MisconfigurationException, match=r"`Trainer\.test` needs `test_step`"):
        trainer.test(compiled, DATA)


def test_a_compiled_submodule(trainer: Any, graphs: Any) -> None:
    net = Net()
    net.layer = torch.compile(net.layer, backend=graphs)
    log = net.log
    trainer.fit(net, DATA)
    assert graphs.seen
    assert net.log == log  # no reason to touch it
    assert "loss" in trainer.callback_metrics


@pytest.mark.parametrize("how", ["step", "in place"])
def test_compiled_in_the_users_way(how: str, trainer: Any, graphs: Any) -> None:
    net = Net()
    if how == "step":
        net.training_step = torch.compile(net.training_step, backend=graphs)  # type: ignore[method-assign]
    else:
        net.compile(backend=graphs)
    trainer.fit(net, DATA)
    assert graphs.seen
    assert set(trainer.callback_metrics) == {"loss", "loss_step", "loss_epoch", "double"}


def test_from_compiled_and_back(graphs: Any) -> None:
    net = Net()
    own = vars(net).keys() - {"_is_torch_compile"}
    compiled = torch.compile(net, backend=graphs)
    assert from_compiled(compiled) is net
    net(torch.ones(1, 2))
    assert len(graphs.seen) == 1
    assert to_uncompiled(compiled) is net
    assert vars(net).keys() - {"_is_torch_compile"} == own
    assert from_compiled(compiled) is net
    assert to_uncompiled(net) is net
    net(torch.ones(1, 2))
    assert len(graphs.seen) == 1


def test_a_step_set_on_the_instance_comes_back(graphs: Any) -> None:
    net = Net()
    net.training_step = own = lambda batch, batch_idx: None  # type: ignore[method-assign]
    from_compiled(torch.compile(net, backend=graphs))
    assert net.training_step is not own
    assert to_uncompiled(net).training_step is own


def test_a_copy_is_not_compiled(graphs: Any) -> None:
    net = from_compiled(torch.compile(Net(), backend=graphs))
    other = copy.deepcopy(net)
    assert other.forward.__self__ is other  # type: ignore[attr-defined]
    assert other.log.__self__ is other  # type: ignore[attr-defined]


def test_modules_that_are_not_compiled_are_left_alone() -> None:
    net = Net()
    before = dict(vars(net))
    keep_logging_out(net)
    assert vars(net) == before


def test_what_is_not_compiled(graphs: Any) -> None:
    with pytest.raises(ValueError, match=r"given Net; expected what `torch\.compile"):
        from_compiled(Net())
    with pytest.raises(ValueError, match="given a compiled Linear"):
        from_compiled(torch.compile(torch.nn.Linear(1, 1), backend=graphs))
    with pytest.raises(ValueError, match="`to_uncompiled` was given a Net that is not compiled"):
        to_uncompiled(Net())
    with pytest.raises(TypeError, match="given Linear"):
        to_uncompiled(torch.compile(torch.nn.Linear(1, 1), backend=graphs))
