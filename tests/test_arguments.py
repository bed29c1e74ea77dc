"""Arguments that the Trainer does not have: what was meant, and what those of older versions have become."""

from __future__ import annotations

import inspect
import pickle

import pytest

import fulmen
from fulmen import Trainer
from fulmen.arguments import _ELSEWHERE, refuse_unknown

KNOWN = list(inspect.signature(Trainer).parameters)


def refused(*args, **kwargs):
    with pytest.raises(TypeError) as caught:
        Trainer(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_epoch", "max_epochs"),
        ("max_step", "max_steps"),
        ("call_backs", "callbacks"),
        ("log_every_n_step", "log_every_n_steps"),
        ("gradient_clip_value", "gradient_clip_val"),
        ("accumulate_grad_batch", "accumulate_grad_batches"),
        ("stratgy", "strategy"),
        ("precison", "precision"),
    ],
)
def test_a_misspelt_argument(name, meant):
    assert refused(**{name: 3}) == (
        f"`Trainer({name}=3)`: there is no argument {name!r}. Did you mean {meant!r}? Type: `Trainer({meant}=3)`."
    )


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"gpus": 2}, "Type instead: `Trainer(accelerator='gpu', devices=2)`"),
        ({"tpu_cores": 8}, "`Trainer(accelerator='tpu', devices=8)`"),
        ({"resume_from_checkpoint": "a.ckpt"}, "`trainer.fit(model, ckpt_path='a.ckpt')`"),
        ({"auto_lr_find": True}, "`Tuner(trainer).lr_find(model)`"),
        ({"progress_bar_refresh_rate": 0}, "`Trainer(callbacks=[TQDMProgressBar(refresh_rate=0)])`"),
        ({"weights_summary": "top"}, "`Trainer(enable_model_summary=True)`"),
        ({"checkpoint_callback": False}, "`Trainer(enable_checkpointing=True)` or False"),
        ({"amp_backend": "native"}, "`Trainer(precision='16-mixed')`"),
        ({"epochs": 3}, "`Trainer(max_epochs=3)`"),
        ({"replace_sampler_ddp": False}, "`Trainer(use_distributed_sampler=False)`"),
    ],
)
def test_an_argument_that_has_moved(given, instead):
    message = refused(**given)
    assert instead in message
    assert "Did you mean" not in message


def test_what_is_advised_exists():
    """Each argument of the Trainer that the table names is one, and none of its keys is."""
    advised = {argument for text in _ELSEWHERE.values() for argument in _arguments_in(text)}
    assert advised <= set(KNOWN)
    assert not set(_ELSEWHERE) & set(KNOWN)


def _arguments_in(text):
    calls = [part for part in text.split("`") if part.startswith("Trainer(")]
    return [call.removeprefix("Trainer(").split("=")[0] for call in calls]


def test_all_of_them_at_once():
    message = refused(max_epoch=1, gpus=1)
    assert "'max_epochs'" in message
    assert "accelerator='gpu'" in message


def test_an_argument_like_no_other_lists_them():
    message = refused(zzz=object())
    assert "There are: accelerator, strategy, devices," in message


def test_a_long_value_is_cut():
    assert len(refused(zzz="x" * 10_000)) < 2000


def test_positional_arguments():
    assert Trainer("cpu", logger=False).accelerator.name() == "cpu"
    assert "'accelerator' twice" in refused("cpu", accelerator="cpu")
    with pytest.raises(TypeError, match="2 arguments, 3 were given"):
        refuse_unknown(["a", "b"], (1, 2, 3), {})


def test_the_signature_is_that_of_the_arguments():
    parameters = inspect.signature(Trainer.__init__).parameters
    kinds = {parameter.kind for name, parameter in parameters.items() if name != "self"}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters["max_epochs"].default is None
    assert Trainer.__init__.__name__ == "__init__"


class Mine(Trainer):
    """At module level, so that it can be pickled."""

    def __init__(self, extra=1, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra


def test_a_subclass_has_its_own_arguments_and_those_of_the_trainer():
    assert Mine(extra=2, max_epochs=3, logger=False).max_epochs == 3
    with pytest.raises(TypeError, match="Did you mean 'max_epochs'"):
        Mine(extra=2, max_epoch=3)


def test_a_class_can_be_pickled():
    assert pickle.loads(pickle.dumps(Mine)) is Mine
    assert pickle.loads(pickle.dumps(fulmen.Trainer)) is Trainer


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"accelerator": "gpuu"}, "gpu"),
        ({"accelerator": "CPU"}, "cpu"),
        ({"strategy": "dpp"}, "ddp"),
        ({"strategy": "single_devise"}, "single_device"),
        ({"precision": "bf16mixed"}, "bf16-mixed"),
        ({"precision": "32true"}, "32-true"),
    ],
)
def test_a_misspelt_value(given, meant):
    (name, value) = next(iter(given.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r} is not known. Did you mean {meant!r}"):
        Trainer(**given)
