"""What a stage will take, from batches of it that were tried, and afterwards how well that came true.

A run is: Ray and the workers start, each loads its model and makes a first batch; then whoever is free takes the next
shard, reads it, makes its batches, and publishes it; at the end the last ones are waited for.
"""

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

DRAWS = 500  # resamples behind P50 and P90
MOST_SCHEDULED = 4096  # shards that are handed out one by one; of more, the end hardly counts
FEWEST = 3  # batches that make a rate


@dataclass(frozen=True)
class Batch:
    """One batch that was tried, and what its worker did besides; seconds of the clock.

    Attributes:
        tiles: rows in it.
        shard_tiles: rows of the shard that was read for it.
        transform_s: in the stage's own transform; of a worker's first batch, with what the model does once.
        encode_s: its rows to Parquet.
        create_s: those bytes into the archive's store, under a name of their own.
        size_bytes: of them, without what a file of no row has.
        began_s, ended_s: since 1970, by the clock of its machine.
        first: of its worker.
    """

    worker: str
    tiles: int
    shard_tiles: int
    read_s: float
    transform_s: float
    encode_s: float
    create_s: float
    size_bytes: int
    began_s: float
    ended_s: float
    first: bool = False


@dataclass(frozen=True)
class Probe:
    """Batches of one stage, made by as many workers as its run will have.

    Attributes:
        connect_s: until the Ray session was there; 0 where it was before.
        began_s: when workers were asked for.
        closed_s: when the last of them was gone.
    """

    batches: tuple[Batch, ...]
    workers: int
    connect_s: float
    began_s: float
    closed_s: float


@dataclass(frozen=True)
class Price:
    dollars_per_hour: float = 0.0  # of the machines, together
    dollars_per_gpu_hour: float = 0.0


@dataclass(frozen=True)
class Range:
    p50: float
    p90: float

    @classmethod
    def of(cls, drawn: np.ndarray) -> "Range":
        return cls(*(float(value) for value in np.quantile(drawn, (0.5, 0.9))))

    def __mul__(self, factor: float) -> "Range":
        return Range(self.p50 * factor, self.p90 * factor)


@dataclass(frozen=True)
class Forecast:
    """Of one table.

    Attributes:
        command: the verb and its flags.
        maker: digest of the settings and sources that the table will have.
        tiles, shards: that are still to be made.
        assumed: for another number of tiles or workers than the run here will have.
        asked: workers that the command asks for; a run with others is not held to it.
        start_s: until the average worker has its first batch behind it.
        shares: of the workers' time, by what they do; they add up to 1.
        probed: tiles that were tried.
        knobs: settings that were tried at another value.
    """

    table: str
    command: str
    maker: str
    tiles: int
    shards: int
    workers: int
    gpus_per_worker: float
    assumed: bool
    asked: int
    probed: int
    tile_s: float  # one worker's seconds a tile
    start_s: float
    seconds: Range
    gpu_hours: Range
    dollars: Range
    size_bytes: Range
    shares: dict[str, float]
    knobs: list["Knob"] = field(default_factory=list)

    @property
    def hours(self) -> Range:
        return self.seconds * (1 / 3600)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"hours": asdict(self.hours)}


@dataclass(frozen=True)
class Knob:
    """A setting, what it is, what was tried, and the share of the time that this took."""

    flag: str
    now: str
    tried: str
    share: float


def forecast(
    probe: Probe,
    shards: Sequence[int] | np.ndarray,
    gpus_per_worker: float,
    price: Price,
    seed: int,
    workers: int | None = None,
    **told: Any,
) -> Forecast:
    """
    Args:
        shards: tiles of each shard that is to be made, in the order in which they are handed out.
        workers: that the run will have; default: those of the probe.
        told: what else the forecast says, of its fields.
    """
    workers = min(workers or probe.workers, max(len(shards), 1))
    batches = steady(probe)
    drawn = np.random.default_rng(seed)
    chosen = drawn.integers(len(batches), size=(DRAWS, len(batches)))  # [DRAWS, batches]
    tiles, transform, encode, size = (
        np.array([getattr(batch, name) for batch in batches], float)[chosen]
        for name in ("tiles", "transform_s", "encode_s", "size_bytes")
    )  # each [DRAWS, batches]
    every = [batch for batch in probe.batches if not batch.first] or list(
        probe.batches
    )  # the first read is in the start
    read_tile_s = sum(batch.read_s for batch in every) / sum(batch.shard_tiles for batch in every)
    shard_s = float(np.median([batch.create_s for batch in every])) + hand_over_s(probe)
    made_s = (transform + encode).sum(1) / tiles.sum(1)  # [DRAWS], a tile
    spread_s = (transform + encode).std(1)  # [DRAWS], of a batch
    rows = np.asarray(shards, float)  # [shards]
    in_shard = np.ceil(rows / max(tiles.mean(), 1)).clip(1)  # batches
    start_s, end_s = start_of(probe, float(made_s.mean())), closing_s(probe)
    spans = np.empty(DRAWS)
    if len(rows) > MOST_SCHEDULED:
        noise = drawn.standard_normal(DRAWS) * spread_s * np.sqrt(in_shard.sum())
        whole = rows.sum() * (made_s + read_tile_s) + len(rows) * shard_s + noise
        spans = whole / workers + whole / len(rows) / 2  # at the end the average worker waits for half a shard
    else:
        for draw in range(DRAWS):
            noise = drawn.standard_normal(len(rows)) * spread_s[draw] * np.sqrt(in_shard)
            spans[draw] = makespan(rows * (made_s[draw] + read_tile_s) + shard_s + noise, workers)
    seconds = probe.connect_s + start_s + spans + end_s
    wall = Range.of(seconds)
    gpu_hours = wall * (workers * gpus_per_worker / 3600)
    per_hour = price.dollars_per_hour + price.dollars_per_gpu_hour * workers * gpus_per_worker
    total = float(np.median(seconds)) * workers
    parts = {
        "reading": read_tile_s * rows.sum(),
        "computing": float((transform.sum(1) / tiles.sum(1)).mean()) * rows.sum(),
        "publishing": float((encode.sum(1) / tiles.sum(1)).mean()) * rows.sum() + shard_s * len(rows),
        "starting": (probe.connect_s + start_s + end_s) * workers,
    }
    parts["waiting for the last"] = max(total - sum(parts.values()), 0.0)
    return Forecast(
        tiles=int(rows.sum()),
        shards=len(rows),
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        probed=sum(batch.tiles for batch in probe.batches),
        tile_s=float(made_s.mean()) + read_tile_s,
        start_s=probe.connect_s + start_s + end_s,
        seconds=wall,
        gpu_hours=gpu_hours,
        dollars=wall * (per_hour / 3600),
        size_bytes=Range.of(size.sum(1) / tiles.sum(1) * rows.sum()),
        shares={what: part / sum(parts.values()) for what, part in parts.items()},
        **told,
    )


def steady(probe: Probe) -> list[Batch]:
    """Batches that were made while all workers were at work; all but the first of each where these are too few."""
    later = [batch for batch in probe.batches if not batch.first] or list(probe.batches)
    last = dict[str, float]()
    for batch in later:
        last[batch.worker] = max(last.get(batch.worker, 0.0), batch.ended_s)
    together = [batch for batch in later if batch.ended_s <= min(last.values())]
    return together if len(together) >= FEWEST else later


def start_of(probe: Probe, made_s: float) -> float:
    """Until the average worker is through its first batch, less what that batch takes at the steady rate."""
    first = [batch for batch in probe.batches if batch.first]
    if not first:
        return 0.0
    return max(sum(batch.ended_s - probe.began_s - batch.tiles * made_s for batch in first) / len(first), 0.0)


def closing_s(probe: Probe) -> float:
    return max(probe.closed_s - max(batch.ended_s for batch in probe.batches), 0.0)


def hand_over_s(probe: Probe) -> float:
    """From the end of what a worker did to the begin of what it does next, in the middle of many."""
    gaps = []
    for worker in {batch.worker for batch in probe.batches}:
        own = sorted((b for b in probe.batches if b.worker == worker and not b.first), key=lambda b: b.began_s)
        gaps += [after.began_s - before.ended_s for before, after in pairwise(own)]
    return max(float(np.median(gaps)), 0.0) if gaps else 0.0


def makespan(durations: np.ndarray, workers: int) -> float:
    """When the last of jobs ends that are handed out in order, each to the first worker that is free.

    Args:
        durations: seconds of each.
    """
    free = [0.0] * workers
    for seconds in durations:
        heapq.heapreplace(free, free[0] + float(seconds))
    return max(free)


def score(told: dict[str, Any], tiles: int, took_s: float) -> dict[str, Any] | None:
    """How a run came out beside its forecast; one that had some of the tiles only is held to that part of it.

    Args:
        told: a `Forecast` as JSON.
        tiles: that the run made.
    """
    if not told["tiles"] or not tiles:
        return None
    share = tiles / told["tiles"]
    p50, p90 = (told["start_s"] + max(told["seconds"][name] - told["start_s"], 0.0) * share for name in ("p50", "p90"))
    return {
        "forecast_s": p50,
        "forecast_p90_s": p90,
        "took_s": took_s,
        "error": took_s / p50 - 1,
        "tiles": tiles,
        "forecast_tiles": told["tiles"],
    }


def score_in_words(found: dict[str, Any]) -> str:
    """`forecast 48.0 min, took 53.8 min (+12 %)`."""
    told, took = duration(found["forecast_s"]), duration(found["took_s"])
    return f"forecast {told}, took {took} ({100 * found['error']:+.0f} %)"


def duration(seconds: float) -> str:
    """`45 s`, `12.3 min`; from two hours on `2.4 h`."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def dearest(forecasts: Sequence[Forecast]) -> Forecast:
    """The one that costs most, in dollars where there are any, else in hours of workers."""
    return max(forecasts, key=lambda told: (told.dollars.p50, told.seconds.p50 * told.workers))


def advice(told: Forecast, all_seconds: float) -> str:
    """What costs most, and what moves it.

    Args:
        all_seconds: of all forecasts together.
    """
    what, share = max(told.shares.items(), key=lambda part: part[1])
    line = (
        f"{told.table} costs most: {100 * told.seconds.p50 / max(all_seconds, 1e-9):.0f} % of the time, "
        f"{100 * share:.0f} % of it {what}"
    )
    knobs = sorted((knob for knob in told.knobs if knob.share < 1), key=lambda knob: knob.share)
    if what == "starting" and not knobs:
        return f"{line}; that is the same for more tiles, so give it more at a time"
    if not knobs:
        return f"{line}; what moves it is --workers ({told.workers} now), with CPUs or GPUs of their own"
    return f"{line}; {knobs[0].flag} {knobs[0].tried} instead of {knobs[0].now} took {knobs[0].share:.2f} of it"
