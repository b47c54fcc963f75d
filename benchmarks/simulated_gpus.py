"""How busy does a stage keep many GPUs? They are simulated: actors whose batch is a nap, up to 64 on one machine.

    python benchmarks/simulated_gpus.py --actors 1 2 4 8 16 32 64 --out OUT

Everything else is real: `run_stage`, the watch, Ray Data's actors, shards that are read and published on the local
disk. A shard is one file under many names. Each count of actors has a process and a Ray session of its own.

`busy` is the naps' nominal length over actors times wall time, from when the last actor begins its first batch to when
the first one ends its last; a nap that ends late because no core was free counts as idle. `whole` is the same from the
first batch of all to the last, with the uneven start and end. CPU is in per cent of one core, over the time of `busy`.
OUT gets `result.json` and the page to keep beside this script; a bar that is missed is only told.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import pyarrow as pa
import ray

from urbancross import schemas, storage
from urbancross.config import MakerConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.tables import MAKER, ROWS

MADE = pa.schema([schemas.TILE_ID, pa.field("payload", pa.string()), schemas.FAILURE])
SAMPLE_S = 1.0
CPUS_PER_WORKER = 0.01
ROLES = {"gcs_server": "gcs", "raylet": "raylet", "ray::Watch": "watch", "ray::": "workers"}
BARS = {32: 0.97, 64: 0.93}
DRIVER_BAR = 30.0
FOUND = "FOUND "


class Nap:
    """A GPU that takes as long for every batch; the first row says who took it when."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        began = time.time()
        time.sleep(self.seconds)
        tiles = tables["tiles"]
        told = [f"{os.getpid()} {began!r}", *[None] * (tiles.num_rows - 1)]
        return pa.table([tiles["tile_id"], pa.array(told, pa.string()), tiles["failure"]], schema=MADE)


def make_archive(archive: Path, shards: int, tiles: int, image_bytes: int) -> Path:
    """Tables `tiles` and the counts of `plan`: one shard and its hard links."""
    shutil.rmtree(archive, ignore_errors=True)
    known = {
        "tile_id": [f"t-{number:06d}" for number in range(tiles)],
        "domain": ["x"] * tiles,
        "image": [os.urandom(image_bytes) for _ in range(tiles)],
    }
    columns = [pa.array(known.get(f.name, [None] * tiles), f.type) for f in schemas.TILES]
    first, *others = (f"part-{number:05d}.parquet" for number in range(shards))
    storage.publish_shard(archive / "tiles" / first, pa.table(columns, schema=schemas.TILES))
    for name in others:
        os.link(archive / "tiles" / first, archive / "tiles" / name)
    storage.write_json(archive / "tiles" / MAKER, {"table": "tiles", "settings": {"domain": "x"}, "sources": {}})
    storage.write_json(archive / "plan" / ROWS, dict.fromkeys([first, *others], tiles))
    return archive


def work(archive: str, actors: int, batch_tiles: int, batch_s: float) -> None:
    """What a measuring process does."""
    stage = Stage("made@nap", {"tiles": ["image"]}, MADE, Nap, {"seconds": batch_s}, {"nap": batch_s}, batch_tiles)
    balance = run_stage(Path(archive), stage, MakerConfig(workers=actors, cpus_per_worker=CPUS_PER_WORKER))
    print(FOUND + str(balance), flush=True)


def measured(archive: Path, actors: int, batch_tiles: int, batch_s: float, log: Path) -> dict[str, Any]:
    """One run in a process of its own, and what all its processes used meanwhile."""
    told = {"archive": str(archive), "actors": actors, "batch_tiles": batch_tiles, "batch_s": batch_s}
    command = [sys.executable, __file__, "--work", json.dumps(told)]
    samples, ended, balance = list[tuple[float, Counter[str]]](), threading.Event(), ""
    began = time.monotonic()
    with (
        log.open("a") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        threading.Thread(target=sample, args=(process.pid, ended, samples), daemon=True).start()
        for line in process.stdout or ():
            if line.startswith(FOUND):
                balance = line.removeprefix(FOUND).strip()
                ended.set()
    if not balance:
        raise SystemExit(f"{actors} actors: the run ended with {process.returncode}; see {log}")
    wall_s = time.monotonic() - began
    naps = sorted(
        (int(text.split()[0]), float(text.split()[1]), name)
        for name in storage.shards(archive / "made@nap")
        for text in storage.read_shard(archive / "made@nap" / name, ["payload"])["payload"].to_pylist()
        if text is not None
    )
    return {"balance": balance, "wall_s": wall_s, **judged(naps, actors, batch_s, samples)}


def judged(
    naps: list[tuple[int, float, str]], actors: int, batch_s: float, samples: list[tuple[float, Counter[str]]]
) -> dict[str, Any]:
    """
    Args:
        naps: process, begin and shard of each, sorted.
        samples: CPU seconds by role, at times since 1970.
    """
    by: dict[int, list[tuple[float, str]]] = {}
    for process, begin, shard in naps:
        by.setdefault(process, []).append((begin, shard))
    start, stop = max(own[0][0] for own in by.values()), min(own[-1][0] + batch_s for own in by.values())
    busy_s = sum(max(min(begin + batch_s, stop) - max(begin, start), 0.0) for _, begin, _ in naps)
    first, last = min(begin for _, begin, _ in naps), max(begin for _, begin, _ in naps) + batch_s
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for own in by.values():
        for (before, shard), (after, other) in pairwise(own):
            if start <= before <= stop:
                gaps[shard == other].append(1000 * (after - before - batch_s))
    return {
        "driver_mib": max((told["driver MiB"] for _, told in samples), default=0),
        "actors": len(by),
        "wanted": actors,
        "batches": len(naps),
        "window_s": stop - start,
        "busy": busy_s / (len(by) * (stop - start)),
        "whole": len(naps) * batch_s / (actors * (last - first)),
        "batch_gap_ms": median(gaps[True]),
        "shard_gap_ms": median(gaps[False]),
        "shard_gap_p95_ms": quantiles(gaps[False], n=20)[-1],
        "cpu": used(samples, start, stop),
    }


def used(samples: list[tuple[float, Counter[str]]], start: float, stop: float) -> dict[str, float]:
    """Per cent of one core by role, between the samples nearest to both times."""
    inside = [sample for sample in samples if start <= sample[0] <= stop]
    if len(inside) < 2:
        return {}
    (begin, before), (end, after) = inside[0], inside[-1]
    return {role: 100 * (after[role] - before[role]) / (end - begin) for role in sorted(after) if "MiB" not in role}


def sample(driver: int, ended: threading.Event, samples: list[tuple[float, Counter[str]]]) -> None:
    while not ended.wait(SAMPLE_S):
        told: Counter[str] = Counter()
        try:
            whole = psutil.Process(driver)
            told["driver"] += cpu_s(whole)
            told["driver MiB"] = int(whole.memory_info().rss / 2**20)
            for child in whole.children(recursive=True):
                told[role_of(child)] += cpu_s(child)
        except psutil.NoSuchProcess:
            continue  # one of them ended just now
        told["machine"] += sum(getattr(psutil.cpu_times(), kind) for kind in ("user", "nice", "system"))
        samples.append((time.time(), told))


def role_of(process: psutil.Process) -> str:
    title = " ".join(process.cmdline()[:1]) or process.name()
    return next((role for sign, role in ROLES.items() if sign in title), "other")


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def page(results: list[dict[str, Any]], told: argparse.Namespace) -> str:
    """The result as it is kept beside this script."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line).split(": ")[1]
    lines = [
        f"# {(__doc__ or '').splitlines()[0]}\n",
        f"Commit {commit}, Ray {ray.__version__}, pyarrow {pa.__version__}, {os.cpu_count()} cores of {cpu},",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB. {told.shards} shards of {told.shard_tiles:,} tiles for each "
        f"actor, {told.image_bytes:,} bytes a tile, batches of {told.batch_tiles} tiles and {told.batch_ms} ms.\n",
        f"```\npython benchmarks/simulated_gpus.py {' '.join(sys.argv[1:])}\n```\n",
        "| actors | busy, % | bar | whole, % | between batches, ms | between shards, ms (95 %) "
        f"| driver, % of a core (bar {DRIVER_BAR:.0f}) | "
        "driver, MiB | watch | raylet, gcs | workers | machine |\n|" + "---|" * 12,
    ]
    for found in results:
        cpu_of = Counter(found["cpu"])
        kept = "" if (bar := BARS.get(found["wanted"])) is None else f"≥ {100 * bar:.0f}"
        lines.append(
            f"| {found['actors']} | {100 * found['busy']:.1f} | {kept} | {100 * found['whole']:.1f} | "
            f"{found['batch_gap_ms']:.1f} | {found['shard_gap_ms']:.0f} ({found['shard_gap_p95_ms']:.0f}) | "
            f"{cpu_of['driver']:.0f} | {found['driver_mib']} | {cpu_of['watch']:.0f} | "
            f"{cpu_of['raylet'] + cpu_of['gcs']:.0f} | {cpu_of['workers']:.0f} | {cpu_of['machine']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(**json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--shards", type=int, default=6, help="for each actor")
    parser.add_argument("--shard-tiles", type=int, default=2048)
    parser.add_argument("--batch-tiles", type=int, default=64)
    parser.add_argument("--batch-ms", type=int, default=200)
    parser.add_argument("--image-bytes", type=int, default=1024)
    parser.add_argument("--hardware", default=f"cpu{os.cpu_count()}", help="a word in the name of the page")
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()
    home = told.out.absolute()
    home.mkdir(parents=True, exist_ok=True)
    results = []
    for actors in told.actors:
        archive = make_archive(home / "archive", told.shards * actors, told.shard_tiles, told.image_bytes)
        found = measured(archive, actors, told.batch_tiles, told.batch_ms / 1000, home / "stderr.txt")
        results.append(found)
        print(json.dumps(found), file=sys.stderr, flush=True)
    storage.write_json(home / "result.json", {"result": results})
    (home / f"simulated_gpus_{told.hardware}_{time.strftime('%Y%m')}.md").write_text(text := page(results, told))
    print(text)


if __name__ == "__main__":
    main()
