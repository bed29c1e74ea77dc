from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest

from fulmen.report import Checkpoint, Curve, ReportData, format_duration, group_curves, render, stage_of

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects text and attributes."""

    def __init__(self, html):
        super().__init__()
        self.open, self.words, self.attributes, self.tags = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def curve(name, *values):
    return Curve(name, [float(index) for index in range(len(values))], list(values))


@pytest.fixture
def data():
    return ReportData(
        title="A <title> & more",
        model="Net",
        started="1 May 2026",
        duration=125.0,
        epochs=3,
        steps=1234,
        monitor="val_loss",
        metrics={"val_loss": 0.123456, "train_loss_step": 9.0, "acc": math.nan},
        curves=[curve("train_loss", 3.0, 2.0, 1.0), curve("val_loss", 2.5, 1.5), curve("acc", math.nan, 0.5)],
        learning_rates=[curve("SGD", 0.1, 0.01)],
        timings={"data": 1.0, "forward_backward": 3.0},
        configuration={"precision": "bf16-mixed"},
        hyperparameters={"hidden": 77},
        summary="0 | layer | Linear",
        checkpoints=[Checkpoint("/runs/a/best.ckpt", 0.123456, best=True), Checkpoint("/runs/a/last.ckpt")],
        versions={"fulmen": "9.8.7"},
    )


def test_everything_is_on_the_page(data):
    page = Page(render(data))
    for part in [
        "A <title> & more",
        "Net",
        "1 May 2026",
        "2 min 5 s",
        "1,234 steps",
        "3 epochs",
        "0.12346",
        "nan",
        "1 not finite",
        "learning rate",
        "Waiting for data 25.0%",
        "Forward and backward 75.0%",
        "bf16-mixed",
        "hidden 77",
        "0 | layer | Linear",
        "best.ckpt (best)",
        "last.ckpt",
        "/runs/a/",
        "fulmen 9.8.7",
        "finished",
    ]:
        assert part in page.text, part
    assert page.tags.count("figure") == 3


def test_the_page_needs_nothing_from_outside(data):
    html = render(data)
    page = Page(html)
    assert "http" not in html
    assert "@import" not in html
    assert not [name for name, _ in page.attributes if name in ("src", "href")]
    assert not {"link", "img", "iframe"} & set(page.tags)


def test_an_empty_report_has_only_a_head():
    page = Page(render(ReportData(title="nothing")))
    assert page.text.endswith("nothing finished")
    assert "section" not in page.tags


def test_what_ended_the_run_is_shown_escaped():
    page = Page(render(ReportData(title="t", status="failed", error="ValueError: <x>")))
    assert "failed" in page.text
    assert "ValueError: <x>" in page.text


def test_many_points_make_a_small_page():
    steps = [float(step) for step in range(100_000)]
    long = Curve("loss", steps, [math.exp(-step / 3e4) + 0.1 * math.sin(step) for step in steps])
    assert len(render(ReportData(title="long", curves=[long]))) < 150_000


def test_the_monitored_metric_is_the_headline(data):
    cards = Page(render(data)).text.split("duration")[0]
    assert "val_loss 0.12346" in cards
    assert "train_loss_step" not in cards


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["train_loss", "val_loss"], {"loss": ["train_loss", "val_loss"]}),
        (["val/acc", "train/acc_epoch", "train/acc_step"], {"acc": ["train/acc_epoch", "train/acc_step", "val/acc"]}),
        (["loss", "val_loss"], {"loss": ["loss", "val_loss"]}),
        (["acc_val", "acc_train"], {"acc": ["acc_train", "acc_val"]}),
        (["loss_step", "loss_epoch", "test_loss/dataloader_idx_1"], None),
        (["grad_norm"], {"grad_norm": ["grad_norm"]}),
        (["step", "train", "value"], {"step": ["step"], "train": ["train"], "value": ["value"]}),
    ],
)
def test_metrics_of_one_thing_share_a_chart(names, groups):
    found = {name: [curve.name for curve in group] for name, group in group_curves(map(Curve, names)).items()}
    assert found == (groups if groups is not None else {"loss": names})


def test_stages_by_name():
    assert [stage_of(name) for name in ("train_x", "val/x", "x_valid", "test.x", "value", "x")] == [0, 1, 1, 2, 0, 0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250 ms"), (42, "42.0 s"), (200, "3 min 20 s"), (3600, "1 h"), (94000, "1 d 2 h 6 min")],
)
def test_durations_in_words(seconds, text):
    assert format_duration(seconds) == text
