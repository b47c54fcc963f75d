"""Steps of training from the shards of an archive, made ready on the way by Ray Data while the last one is learnt from.

Shards are taken in windows, each shuffled as a whole, so that memory does not grow with the archive; one that is small
enough is a single window. Every process of the team has a stream of its own, of the parts that are its own.
"""

import math
import pickle
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data._internal.execution.execution_callback import ExecutionCallback

from urbancross import storage
from urbancross.distributed.features import FeatureTables
from urbancross.pairs import Pairs, Plan, Step, gather_pairs
from urbancross.resuming import drawn
from urbancross.storage import Place
from urbancross.tables import read_aligned

WINDOW = 1 << 15  # pairs that are shuffled together, at least
STEPS_A_BLOCK = 8  # of stored features, which are small; one where images are decoded
SAMPLED = 64  # shards that a sample of pairs is drawn from
AHEAD = 2  # blocks that wait for their turn
PAUSE_S = 0.02


def load_pairs(
    archive: Place,
    tables: FeatureTables,
    split: str,
    images: bool = False,
    written: bool = False,
    names: list[str] | None = None,
) -> Pairs:
    """The pairs of a split, from the shards of an archive, or from some of them; see `gather_pairs`."""
    sources = {
        "tiles": ["split", "image"] if images else ["split"],
        tables.captions: ["captions"],
        tables.features: ["image", "texts", *(["segments"] if tables.max_segments else [])],
    }
    aligned = (read_aligned(archive, sources, name) for name in names or storage.shards(archive / tables.features))
    shards = (dict(zip(("tiles", "captions", "features"), found.values(), strict=True)) for found in aligned)
    return gather_pairs(shards, split, tables.max_segments, images, written)


@dataclass(frozen=True)
class Windows:
    """Which shards are shuffled together, and where in a pass a step lies.

    Attributes:
        shards: of each window.
        pairs: in each window.
    """

    shards: list[list[str]]
    pairs: list[int]
    seed: int

    @classmethod
    def of(cls, counts: dict[str, int], seed: int, least: int = WINDOW) -> "Windows":
        """
        Args:
            counts: usable pairs by shard.
            least: pairs in a window, but where there are fewer in all.
        """
        names = [name for name, count in counts.items() if count]
        names = [names[i] for i in torch.randperm(len(names), generator=drawn(seed, "windows")).tolist()]
        shards: list[list[str]] = [[]]
        pairs = [0]
        left = sum(counts.values())
        for name in names:
            if pairs[-1] >= least <= left:  # what is left is enough for another
                shards.append([])
                pairs.append(0)
            shards[-1].append(name)
            pairs[-1] += counts[name]
            left -= counts[name]
        return cls([sorted(window) for window in shards], pairs, seed)

    def steps(self, size: int) -> list[int]:
        """Of each window."""
        return [max(count // size, 1) for count in self.pairs]

    def locate(self, number: int, size: int) -> tuple[int, int, int]:
        """The pass, the window and the batch in it of a step, counted from 1."""
        steps = self.steps(size)
        epoch, at = divmod(number - 1, sum(steps))
        order = torch.randperm(len(steps), generator=drawn(self.seed, "order of windows", epoch)).tolist()
        ends = list(accumulate(steps[window] for window in order))
        nth = bisect_right(ends, at)
        return epoch, order[nth], at - (ends[nth] - steps[order[nth]])


def some_shards(counts: dict[str, int], least: int, seed: int) -> list[str]:
    """Shards drawn until they hold so many pairs, or all: names in order."""
    return Windows.of(counts, seed, least).shards[0]


def samples(
    archive: Place, tables: FeatureTables, split: str, counts: dict[str, int], count: int, seed: int, **learning: bool
) -> Iterator[tuple[str, Pairs, int]]:
    """Up to SAMPLED shards by name, one after the other, their pairs, and how many to take of each for `count` in all.

    Of many shards, for tiles of a shard are alike: they come from one place, or were sorted.
    """
    names = [name for name, usable in counts.items() if usable]
    drawn_names = [names[i] for i in torch.randperm(len(names), generator=drawn(seed, "samples"))[:SAMPLED].tolist()]
    total = sum(counts[name] for name in drawn_names)
    for name in drawn_names:
        share = math.ceil(count * counts[name] / total)
        yield name, load_pairs(archive, tables, split, names=[name], **learning), share


class Feeder:
    """The worker's side: numbers of steps in, steps out; holds the pairs of one window."""

    def __init__(self, shards: "Shards", plan: Plan, rank: int, world: int) -> None:
        self.shards, self.plan, self.rank, self.world = shards, plan, rank, world
        self.held: tuple[int, Pairs] | None = None

    def __call__(self, numbers: pa.Table) -> dict[str, np.ndarray]:
        steps = [pickle.dumps(self.step(number)) for number in numbers["number"].to_pylist()]
        return {"step": np.array(steps, dtype=object)}

    def step(self, number: int) -> Step:
        epoch, window, nth = self.shards.windows.locate(number, self.plan.size)
        if self.held is None or self.held[0] != window:
            self.held = None  # so that two windows never fill the memory
            self.held = window, self.shards.load(window, self.plan)
        step = self.held[1].step(self.plan, number, (epoch, window), nth, self.rank, self.world)
        return replace(step, tile_keys=step.tile_keys + sum(self.shards.windows.pairs[:window]))


class Unhurried(ExecutionCallback):
    """Has Ray Data's executor, a thread of the process that trains, pause between two looks at its tasks: while blocks
    lie ready it would look again and again, on a core that training needs."""

    def on_execution_step(self, executor: object) -> None:
        time.sleep(PAUSE_S)


@dataclass
class Shards:
    """Training's steps from the shards of an archive; a `pairs.Feed`.

    Attributes:
        waited_s: how long the steps were waited for, all but the first.
    """

    archive: Place
    tables: FeatureTables
    split: str
    windows: Windows
    waited_s: float = field(default=0.0, compare=False)

    @property
    def tiles(self) -> int:
        return sum(self.windows.pairs)

    @cached_property
    def with_segments(self) -> bool:
        """Whether any tile has one; as a rule the first shard tells."""
        return self.tables.segments is not None and any(
            load_pairs(self.archive, self.tables, self.split, names=[name]).with_segments
            for names in self.windows.shards
            for name in names
        )

    def steps_per_epoch(self, size: int) -> int:
        return sum(self.windows.steps(size))

    def load(self, window: int, plan: Plan) -> Pairs:
        learning = {"images": plan.crop_px is not None, "written": plan.tokenizer is not None}
        return load_pairs(self.archive, self.tables, self.split, names=self.windows.shards[window], **learning)

    def steps(self, plan: Plan, first: int, last: int, rank: int, world: int) -> Iterator[Step]:
        if plan.crop_px is None and len(self.windows.pairs) == 1:  # features that stay: a step is a look-up
            here = Feeder(self, plan, rank, world)
            yield from map(here.step, range(first, last + 1))
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.custom_execution_callback_classes = [Unhurried]
        each = STEPS_A_BLOCK if plan.crop_px is None else 1
        blocks = [
            pa.table({"number": np.arange(start, min(start + each, last + 1))})
            for start in range(first, last + 1, each)
        ]
        if not blocks:
            return
        arguments: dict[str, Any] = {"shards": self, "plan": plan, "rank": rank, "world": world}
        made = ray.data.from_arrow(blocks).map_batches(
            Feeder,
            fn_constructor_kwargs=arguments,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,  # the training processes hold them all
            concurrency=1,
        )
        ready = iter(made.iter_batches(batch_size=None, prefetch_batches=AHEAD))
        for nth in range(len(blocks)):
            began = time.monotonic()
            block = next(ready)
            self.waited_s += time.monotonic() - began if nth else 0.0
            for step in block["step"]:
                yield pickle.loads(step)
