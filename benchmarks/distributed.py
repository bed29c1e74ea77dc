"""Steps per second of two processes: through the Trainer, beside the same training written by hand.

    python benchmarks/distributed.py [--rounds 9] [--seconds 1.5] [--only ddp-small,ddp-log] [--json FILE]

Both run in the same processes, in turn: by hand, through the Trainer, by hand, ... A row is the median over rounds of
(steps per second through the Trainer) / (the mean of its two neighbours by hand). Per step means: (a long run - a short
run) / the difference of their steps, so that set-up, wrapping and tear-down cancel. One thread in each process, gloo.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from report import spread, table, write_json
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

Batch = tuple[Tensor, Tensor]
Run = Callable[["ReadyBatches"], None]
PROCESSES, CLASSES, LEARNING_RATE, SHORTEST = 2, 10, 0.01, 10


@dataclass(frozen=True)
class Size:
    """A residual network of linear blocks."""

    width: int
    blocks: int
    batch: int

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return Net(self)


SIZES = {"small": Size(64, 2, 32), "middle": Size(512, 6, 64)}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(functional.relu(self.inner(self.norm(x))))  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(size.width) for _ in range(size.blocks))
        self.head = nn.Linear(size.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


class ReadyBatches:
    """A sized iterable of batches made beforehand, other ones on each rank."""

    def __init__(self, size: Size, count: int) -> None:
        generator = torch.Generator().manual_seed(dist.get_rank())
        features = torch.randn(16, size.batch, size.width, generator=generator)
        labels = torch.randint(CLASSES, (16, size.batch), generator=generator)
        self.pool = list(zip(features, labels, strict=True))
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return (self.pool[index % 16] for index in range(self.count))


def by_hand(size: Size, strategy: str) -> Run:
    """The training that a careful person writes."""

    def run(batches: ReadyBatches) -> None:
        model = size.model()
        if strategy == "ddp":
            model = DistributedDataParallel(model)
        else:
            for block in model.blocks:  # type: ignore[union-attr]
                fully_shard(block)  # type: ignore[arg-type]
            fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
        for features, labels in batches:
            loss = functional.cross_entropy(model(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def through_trainer(size: Size, strategy: str, logs: bool) -> Run:
    """The same through a Trainer with everything off, or with one value that is averaged over ranks and epoch."""
    import fulmen

    class Silent(fulmen.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = size.model()

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            features, labels = batch
            return functional.cross_entropy(self.model(features), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), LEARNING_RATE)

    class Logging(Silent):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=size.batch)
            return loss

    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    quiet: dict[str, Any] = dict.fromkeys(off, False)

    def run(batches: ReadyBatches) -> None:
        trainer = fulmen.Trainer(accelerator="cpu", devices=PROCESSES, strategy=strategy, max_epochs=1, **quiet)
        trainer.fit(Logging() if logs else Silent(), batches)

    return run


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    key: str
    label: str
    size: str
    strategy: str
    logs: bool = False


CONTENDERS = (
    Contender("raw-small", "DDP by hand against itself (noise), small", "small", "ddp"),
    Contender("ddp-small", "DDP, small", "small", "ddp"),
    Contender("ddp-log", "DDP, small, self.log(sync_dist=True, on_epoch=True)", "small", "ddp", logs=True),
    Contender("ddp-middle", "DDP, middle", "middle", "ddp"),
    Contender("fsdp-small", "FSDP2, small", "small", "fsdp"),
    Contender("fsdp-middle", "FSDP2, middle", "middle", "fsdp"),
)


def seconds(run: Run, size: Size, steps: int) -> float:
    """Wall time of one whole run, from a point where all are ready to one where all are done."""
    batches = ReadyBatches(size, steps)
    gc.collect()
    dist.barrier()
    start = time.perf_counter()
    run(batches)
    dist.barrier()
    return time.perf_counter() - start


def step_cost(run: Run, size: Size, steps: int) -> float:
    """Microseconds of a step, without set-up and tear-down."""
    short = seconds(run, size, SHORTEST)
    return (seconds(run, size, SHORTEST + steps) - short) / steps * 1e6


def steps_for(run: Run, size: Size, budget: float) -> int:
    """How many steps fill the time; the same on all ranks."""
    seconds(run, size, SHORTEST)
    probe = 5 * SHORTEST
    per_step = seconds(run, size, probe) / probe  # with set-up: a difference may be zero on a busy machine
    steps = [max(SHORTEST, int(budget / per_step))]
    dist.broadcast_object_list(steps, 0)
    return steps[0]


def measure(contender: Contender, rounds: int, budget: float) -> dict[str, Any]:
    """Ratio of speeds and difference of costs, in pairs."""
    size = SIZES[contender.size]
    raw = by_hand(size, contender.strategy)
    is_raw = contender.key.startswith("raw")
    ours = raw if is_raw else through_trainer(size, contender.strategy, contender.logs)
    steps = steps_for(raw, size, budget)
    step_cost(ours, size, SHORTEST)
    before, raws, ratios, overheads = step_cost(raw, size, steps), [], [], []
    for _ in range(rounds):
        cost = step_cost(ours, size, steps)
        after = step_cost(raw, size, steps)
        neighbours = (before + after) / 2
        ratios.append(neighbours / cost)
        overheads.append(cost - neighbours)
        raws.append(neighbours)
        before = after
    return {"steps": steps, "raw": spread(raws), "ratio": spread(ratios), "overhead": spread(overheads)}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Sends what is printed, warned and logged to nowhere."""
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def on_a_rank(rank: int, port: int, rounds: int, budget: float, keys: list[str], path: str) -> None:
    """What each process does; rank 0 writes the result."""
    placement = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "benchmark"}
    os.environ.update({name: str(value) for name, value in (placement | meeting | {"GROUP_RANK": 0}).items()})
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    with silence():
        found = {contender.key: measure(contender, rounds, budget) for contender in CONTENDERS if contender.key in keys}
    if rank == 0:
        Path(path).write_text(json.dumps(found))
    dist.destroy_process_group()


def summarise(args: argparse.Namespace) -> dict[str, Any]:
    keys = args.only.split(",") if args.only else [contender.key for contender in CONTENDERS]
    if unknown := set(keys) - {contender.key for contender in CONTENDERS}:
        known = ", ".join(contender.key for contender in CONTENDERS)
        raise SystemExit(f"unknown contender {sorted(unknown)}; choose from: {known}")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "found.json")
        spawn(on_a_rank, (store.port, args.rounds, args.seconds, keys, path), nprocs=PROCESSES)
        found = json.loads(Path(path).read_text())
    rows = [
        {"key": contender.key, "label": contender.label, **found[contender.key]}
        for contender in CONTENDERS
        if contender.key in keys
    ]
    return {"rounds": args.rounds, "rows": rows}


def render(result: dict[str, Any]) -> str:
    """Returns the table as Markdown."""
    rows = [
        [
            row["label"],
            f"{1e6 / row['raw']['median']:.0f}",
            f"{row['ratio']['median']:.3f}",
            f"{row['ratio']['low']:.3f} .. {row['ratio']['high']:.3f}",
            f"{row['overhead']['median']:+.0f}",
        ]
        for row in result["rows"]
    ]
    head = f"{PROCESSES} processes on one machine, gloo, one thread each; {result['rounds']} rounds."
    sizes = "; ".join(
        f"{name}: {sum(value.numel() for value in size.model().parameters()) / 1e6:.2f} M parameters, "
        f"{size.blocks} blocks, batches of {size.batch}"
        for name, size in SIZES.items()
    )
    header = ["training", "steps/s by hand", "speed / by hand", "quartiles", "us a step over by hand"]
    return "\n".join([head, "", table(header, rows), "", f"- {sizes}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one run by hand")
    parser.add_argument("--only", help="comma-separated keys: " + ", ".join(each.key for each in CONTENDERS))
    parser.add_argument("--json", help="write the result to this file as well")
    args = parser.parse_args()
    result = summarise(args)
    write_json(args.json, result)
    sys.stdout.write(render(result) + "\n")


if __name__ == "__main__":
    main()
