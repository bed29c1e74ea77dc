"""One epoch through a `Feed` and through the raw `DataLoader`: 1797 images of 8x8, batch size 32, shuffled.

```
python benchmarks/feed.py
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen.data import Feed

NUM_IMAGES, BATCH_SIZE, NUM_ROUNDS = 1797, 32, 50


def seconds(epoch: Callable[[], Iterable[Any]]) -> float:
    start = time.perf_counter()
    for _ in epoch():
        pass
    return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dataset = TensorDataset(torch.rand(NUM_IMAGES, 1, 8, 8), torch.randint(10, (NUM_IMAGES,)))
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True)
    feed = Feed(loader)
    raw_times, feed_times = [], []
    for number in range(NUM_ROUNDS):  # in turns, so that other load on the machine hits both
        raw_times.append(seconds(lambda: loader))
        feed_times.append(seconds(lambda epoch=number: feed.start(epoch)))
    raw, fed = min(raw_times), min(feed_times)
    print(f"raw DataLoader  {raw * 1e3:7.3f} ms an epoch  {raw / len(loader) * 1e6:7.2f} us a batch")
    print(f"Feed            {fed * 1e3:7.3f} ms an epoch  {fed / len(loader) * 1e6:7.2f} us a batch")
    print(f"{raw / fed:.1f} times as fast")


if __name__ == "__main__":
    main()
