"""What do 256 GPUs make of 10^8 tiles, when spot nodes are taken away meanwhile? A simulation, event by event.

    python benchmarks/fleet.py [--gpus 256] [--gpus-per-node 8] [--rate 1 5 500] [--kills 0 0.05 0.2] [--runs 5]

A GPU takes the next shard, works on it at its rate, and waits `--gap-s` until the next one, as `simulated_gpus.py` and
`plan` measure it. A node that is taken away takes its GPUs' shards with it, as if nothing had been done, and comes back
after `--back-s`; then its GPUs load their model for `--load-s`. Prints a table for docs/scale.md, medians of `--runs`.
"""

import argparse
import heapq
import random
from statistics import median
from typing import NamedTuple

HOUR = 3600.0


class Outcome(NamedTuple):
    hours: float  # until the last shard
    busy: float  # share of the GPUs' time that went into shards that were kept
    lost_gpu_hours: float  # work that was done for nothing
    kills: int  # nodes


class Fleet(NamedTuple):
    tiles: int
    shard_tiles: int
    gpus: int
    gpus_per_node: int
    gap_s: float
    load_s: float
    back_s: float


def simulate(fleet: Fleet, rate: float, kills_per_hour: float, seed: int) -> Outcome:
    """
    Args:
        rate: tiles a second of one GPU.
        kills_per_hour: how often one node is taken away, on average.
    """
    drawn = random.Random(seed)
    shards = -(-fleet.tiles // fleet.shard_tiles)
    work_s, nodes = fleet.shard_tiles / rate, -(-fleet.gpus // fleet.gpus_per_node)
    left, kept, lost_s, kills, now = shards, 0, 0.0, 0, 0.0
    attempt = [0] * fleet.gpus  # an event of an earlier one is of a GPU that is gone
    since = [-1.0] * fleet.gpus  # when its shard was begun; -1: it has none
    idle = set[int]()  # GPUs that found no shard
    events: list[tuple[float, str, int, int]] = [(fleet.load_s, "free", gpu, 0) for gpu in range(fleet.gpus)]
    if kills_per_hour:
        events += [(drawn.expovariate(kills_per_hour / HOUR), "kill", node, 0) for node in range(nodes)]
    heapq.heapify(events)
    while kept < shards:
        now, what, number, of = heapq.heappop(events)
        if what == "kill":
            kills += 1
            for gpu in range(number * fleet.gpus_per_node, min((number + 1) * fleet.gpus_per_node, fleet.gpus)):
                attempt[gpu] += 1
                idle.discard(gpu)
                if since[gpu] >= 0:
                    lost_s += now - since[gpu]
                    left, since[gpu] = left + 1, -1.0
                heapq.heappush(events, (now + fleet.back_s + fleet.load_s, "free", gpu, attempt[gpu]))
            heapq.heappush(events, (now + drawn.expovariate(kills_per_hour / HOUR), "kill", number, 0))
            for gpu in list(idle)[:left]:
                idle.discard(gpu)
                heapq.heappush(events, (now, "free", gpu, attempt[gpu]))
        elif of == attempt[number]:
            if what == "done":
                kept, since[number] = kept + 1, -1.0
                heapq.heappush(events, (now + fleet.gap_s, "free", number, of))
            elif left:
                left, since[number] = left - 1, now
                heapq.heappush(events, (now + work_s, "done", number, of))
            else:
                idle.add(number)
    return Outcome(now / HOUR, shards * work_s / (fleet.gpus * now), lost_s / HOUR, kills)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiles", type=int, default=10**8)
    parser.add_argument("--shard-tiles", type=int, nargs="+", default=[2048])
    parser.add_argument("--gpus", type=int, default=256)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--rate", type=float, nargs="+", default=[1.0, 5.0, 500.0], help="tiles a second of one GPU")
    parser.add_argument("--kills", type=float, nargs="+", default=[0.0, 0.05, 0.2], help="of one node, an hour")
    parser.add_argument("--gap-s", type=float, default=0.1, help="between two shards of one GPU")
    parser.add_argument("--load-s", type=float, default=120.0)
    parser.add_argument("--back-s", type=float, default=300.0)
    parser.add_argument("--runs", type=int, default=5)
    told = parser.parse_args()
    print(
        "| tiles/s of a GPU | tiles a shard | a node's kills an hour | hours | busy, % | GPU-hours lost | nodes lost |"
    )
    print("|---|---|---|---|---|---|---|")
    for rate in told.rate:
        for shard_tiles in told.shard_tiles:
            sizes = (told.tiles, shard_tiles, told.gpus, told.gpus_per_node, told.gap_s, told.load_s, told.back_s)
            for kills in told.kills:
                runs = [simulate(Fleet(*sizes), rate, kills, seed) for seed in range(told.runs if kills else 1)]
                hours, busy, lost, gone = (median(values) for values in zip(*runs, strict=True))
                given = f"{rate:g} | {shard_tiles:,} | {kills:g}"
                print(f"| {given} | {hours:,.3g} | {100 * busy:.1f} | {lost:,.1f} | {gone:,.0f} |")


if __name__ == "__main__":
    main()
