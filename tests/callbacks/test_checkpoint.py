from __future__ import annotations

from fulmen.callbacks import Checkpoint


def test_a_checkpoint_callback_of_ones_own_replaces_the_default_and_comes_last(fit, scripted) -> None:
    calls: list[str] = []

    class Own(Checkpoint):
        best_model_path = ""

        def on_train_epoch_end(self, trainer, pl_module) -> None:
            calls.append("checkpoint")

    class Module(scripted):
        def on_train_epoch_end(self) -> None:
            calls.append("module")

    own = Own()
    trainer = fit(Module(), own, max_epochs=1)
    assert trainer.callbacks == [own]
    assert calls == ["module", "checkpoint"]
