"""A small transformer in bf16 on one GPU: tokens per second, peak memory, host synchronisations per step.

    python benchmarks/gpu/transformer.py [--rounds 7] [--steps 200] [--compile] [--quick] [--out FILE]

The same model, optimizer and batches by hand, through fulmen and, where it can be imported, through Lightning, in turn
in one process: by hand, A, by hand, B, ... The speed of a row is compared with that of its two neighbours by hand.
Batches are on the device beforehand. `--quick` shows on any machine, without a GPU too, that everything runs; its
numbers are noise. A run on a GPU is added to `RESULTS.md` beside this file, with date and versions.

Host synchronisations are what torch reports in its synchronisation debug mode; each is a place where the host waits
for the device, from the model as from the framework. Where there is no GPU there are none to count.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib
import io
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from report import last_line, machine, spread, table, versions, write_json
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
Run = Callable[["Tokens"], None]
PRECISION, LEARNING_RATE, SHORTEST = torch.bfloat16, 3e-4, 5


@dataclass(frozen=True)
class Size:
    """Of the model and its batches."""

    width: int = 768
    heads: int = 12
    layers: int = 12
    vocabulary: int = 32000
    length: int = 512
    batch: int = 16


QUICK = Size(width=32, heads=2, layers=2, vocabulary=64, length=16, batch=2)


class Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm_attention, self.norm_inner = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.to_heads, self.from_heads = nn.Linear(size.width, 3 * size.width), nn.Linear(size.width, size.width)
        self.inner, self.outer = nn.Linear(size.width, 4 * size.width), nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.to_heads(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.from_heads(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.outer(functional.gelu(self.inner(self.norm_inner(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(size.vocabulary, size.width), nn.Embedding(size.length, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.layers)))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(self.embedding(tokens) + places)))  # type: ignore[no-any-return]


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Tokens:
    """A sized iterable of batches that are on the device."""

    def __init__(self, size: Size, device: torch.device, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        pool = torch.randint(size.vocabulary, (8, size.batch, size.length + 1), generator=generator)
        self.pool, self.count = list(pool.to(device)), count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        return (self.pool[index % len(self.pool)] for index in range(self.count))


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    size: Size
    device: torch.device
    compiles: bool

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = Transformer(self.size)
        if self.compiles:
            model.compile()  # type: ignore[no-untyped-call]
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True)


def load_raw(setting: Setting) -> Run:
    def run(batches: Tokens) -> None:
        model = setting.model().to(setting.device)
        optimizer = setting.optimizer(model)
        for tokens in batches:
            with torch.autocast(setting.device.type, PRECISION):
                loss = loss_of(model, tokens)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def load_trainer(setting: Setting, package: str, logs: bool) -> Run:
    framework: Any = importlib.import_module(package)

    class Silent(framework.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = setting.model()

        def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
            return loss_of(self.model, tokens)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return setting.optimizer(self.model)

    class Logging(Silent):
        def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
            loss = loss_of(self.model, tokens)
            self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(tokens))
            return loss

    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(off, False)
    accelerator = "gpu" if setting.device.type == "cuda" else "cpu"

    def run(batches: Tokens) -> None:
        trainer = framework.Trainer(accelerator=accelerator, devices=1, max_epochs=1, precision="bf16-mixed", **quiet)
        trainer.fit((Logging if logs else Silent)(), batches)

    return run


CONTENDERS: dict[str, tuple[str, Callable[[Setting], Run]]] = {
    "raw": ("by hand, against itself (noise)", load_raw),
    "fulmen": ("fulmen", lambda setting: load_trainer(setting, "fulmen", logs=False)),
    "fulmen-log": ("fulmen, self.log", lambda setting: load_trainer(setting, "fulmen", logs=True)),
    "lightning": ("Lightning", lambda setting: load_trainer(setting, "lightning.pytorch", logs=False)),
    "lightning-log": ("Lightning, self.log", lambda setting: load_trainer(setting, "lightning.pytorch", logs=True)),
}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Run, setting: Setting, steps: int) -> float:
    """Wall time of one whole run."""
    batches = Tokens(setting.size, setting.device, steps)
    gc.collect()
    wait(setting.device)
    start = time.perf_counter()
    run(batches)
    wait(setting.device)
    return time.perf_counter() - start


def speed(run: Run, setting: Setting, steps: int) -> float:
    """Tokens per second, without set-up and tear-down."""
    short = seconds(run, setting, SHORTEST)
    per_step = (seconds(run, setting, SHORTEST + steps) - short) / steps
    return setting.size.batch * setting.size.length / max(per_step, 1e-9)


def peak_megabytes(run: Run, setting: Setting) -> float | None:
    """The most that tensors took on the device; None without a GPU."""
    if setting.device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(setting.device)
    run(Tokens(setting.size, setting.device, SHORTEST))
    return torch.cuda.max_memory_allocated(setting.device) / 1e6


def synchronisations(run: Run, setting: Setting) -> float | None:
    """How often a step makes the host wait; None without a GPU. What set-up and the end of a run need cancels."""
    if setting.device.type != "cuda":
        return None

    def count(steps: int) -> int:
        batches = Tokens(setting.size, setting.device, steps)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run(batches)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in said)

    return (count(25) - count(5)) / 20


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Sends what frameworks print, warn and log to nowhere."""
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def measure(setting: Setting, rounds: int, steps: int) -> list[dict[str, Any]]:
    raw = load_raw(setting)
    seconds(raw, setting, SHORTEST)
    ready: dict[str, Run] = {}
    rows: list[dict[str, Any]] = []
    for key, (label, load) in CONTENDERS.items():
        row: dict[str, Any] = {"key": key, "label": label}
        rows.append(row)
        try:
            ready[key] = load(setting)
            seconds(ready[key], setting, SHORTEST)
        except ModuleNotFoundError as error:
            row["missing"] = f"not installed ({error.name})"
        except Exception as error:
            row["missing"] = "failed: " + last_line(f"{type(error).__name__}: {error}")
            ready.pop(key, None)
        else:
            row |= {"megabytes": peak_megabytes(ready[key], setting), "syncs": synchronisations(ready[key], setting)}
    found: dict[str, tuple[list[float], list[float]]] = {key: ([], []) for key in ready}
    before = speed(raw, setting, steps)
    for _ in range(rounds):
        for key, run in ready.items():
            got = speed(run, setting, steps)
            after = speed(raw, setting, steps)
            found[key][0].append(got)
            found[key][1].append(got / ((before + after) / 2))
            before = after
    for row in rows:
        if row["key"] in found:
            speeds, ratios = found[row["key"]]
            row |= {"tokens_per_second": spread(speeds), "ratio": spread(ratios)}
    return rows


def render(rows: list[dict[str, Any]], setting: Setting, rounds: int, steps: int, quick: bool) -> str:
    """Returns the section of this run as Markdown."""
    cells = []
    for row in rows:
        if "missing" in row:
            cells.append([row["label"], row["missing"], "", "", "", ""])
            continue
        ratio = row["ratio"]
        cells.append(
            [
                row["label"],
                f"{row['tokens_per_second']['median']:.0f}",
                f"{ratio['median']:.3f}",
                f"{ratio['low']:.3f} .. {ratio['high']:.3f}",
                "no GPU" if row["megabytes"] is None else f"{row['megabytes']:.0f}",
                "no GPU" if row["syncs"] is None else f"{row['syncs']:.2f}",
            ]
        )
    header = ["training", "tokens/s", "speed / by hand", "quartiles", "peak MB", "synchronisations a step"]
    name = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else "no GPU"
    parameters = sum(value.numel() for value in Transformer(setting.size).parameters()) / 1e6
    facts = [
        f"- device: {name}; machine: {', '.join(machine().values())}",
        f"- versions: {', '.join(f'{package} {version}' for package, version in versions().items())}",
        f"- {parameters:.1f} M parameters, {setting.size.batch} x {setting.size.length} tokens a step, bf16-mixed,"
        f" fused AdamW, {'compiled' if setting.compiles else 'not compiled'}; {rounds} rounds of {steps} steps",
    ]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return "\n".join(
        [
            f"## {now}",
            "",
            *(["**Quick run: noise, not results.**", ""] if quick else []),
            *facts,
            "",
            table(header, cells),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="compile the model, in all of them")
    parser.add_argument("--quick", action="store_true", help="a tiny model, on the CPU where there is no GPU")
    parser.add_argument("--json", help="write the result to this file as well")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md", help="where the section is added")
    args = parser.parse_args()
    if not args.quick and not torch.cuda.is_available():
        raise SystemExit("There is no GPU here. To see that everything runs, type: --quick")
    rounds, steps = (1, 5) if args.quick else (args.rounds, args.steps)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(QUICK if args.quick else Size(), device, args.compile)
    with silence(), tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        rows = measure(setting, rounds, steps)
    write_json(args.json, {"rows": rows, "rounds": rounds, "steps": steps})
    section = render(rows, setting, rounds, steps, args.quick)
    if not args.quick:
        with args.out.open("a", encoding="utf-8") as results:
            results.write(f"\n{section}\n")
    sys.stdout.write(section + "\n")


if __name__ == "__main__":
    main()
