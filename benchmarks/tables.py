"""What does it cost to make a table shard by shard, exactly once, and what does the driver hold? Five questions.

    python benchmarks/tables.py --part a b c d e --runs 5 --out /tmp/tables

a  Does a stage take longer than the same job written plainly with Ray Data, where the model costs next to nothing?
b  How near does a stage with one actor come to a plain loop, where a tile takes 20 ms?
c  What does the promise cost (fsync, link, lease, watch, checks, the failure column), with a model of 2 ms a tile?
d  How long, and in how much memory, does a command find 50,000 shards done, beside Ray Data's checkpoint of 10^6 ids?
e  Does the driver hold more over 10^6 tiles than over 10^4?

Every measurement has a process of its own, and a bar that is missed is only told. FOLDER gets `result.json` and the
page to keep beside this script. `--scale 0.01` makes everything smaller, for a look.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

from urbancross import schemas, storage
from urbancross.config import MakerConfig
from urbancross.distributed.session import connect
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import map_shards, run_stage
from urbancross.runs import count_failures
from urbancross.tables import MAKER, ROWS

MADE = pa.schema([schemas.TILE_ID, pa.field("payload", pa.string()), schemas.FAILURE])
COLUMNS = ["tile_id", "image", "failure"]
SHARD, BATCH = 2048, 64
CHECKPOINT_LIMIT_S = 600
SAMPLE_S = 0.1
FOUND = "FOUND "  # begins the line in which a measuring process says what it found
KEPT = {True: "yes", False: "**no**", None: ""}


# The models, each from images to payloads, and the transform that every way of running shares.


def hashed(images: list[bytes]) -> list[str]:
    return [hashlib.sha256(image).hexdigest() for image in images]


def slow(images: list[bytes]) -> list[str]:
    time.sleep(0.02 * len(images))
    return hashed(images)


def layers(images: list[bytes]) -> list[str]:
    """Decode a JPEG; then products so small that two actors at them do not wait for each other's memory."""
    weights = np.random.default_rng(0).standard_normal((192, 192), dtype=np.float32) / 10
    found = []
    for image in images:
        pixels = np.asarray(Image.open(io.BytesIO(image)), np.float32).reshape(-1, 192) / 255
        for _ in range(20):
            pixels = np.maximum(pixels @ weights, 0)
        found.append(f"{pixels.mean():.2e}")
    return found


def nothing(images: list[bytes | None]) -> list[None]:
    return [None] * len(images)


MODELS: dict[str, Callable[[list[Any]], list[Any]]] = {f.__name__: f for f in (hashed, slow, layers, nothing)}


class Transform:
    def __init__(self, model: str) -> None:
        self.model = MODELS[model]

    def __call__(self, tiles: pa.Table | dict[str, pa.Table]) -> pa.Table:
        tiles = tiles["tiles"] if isinstance(tiles, dict) else tiles
        payloads = pa.array(self.model(tiles["image"].to_pylist()), pa.string())
        return pa.table([tiles["tile_id"], payloads, tiles["failure"]], schema=MADE)


# The ways to run a model over an archive: each makes the table `made@WAY`.


def stage(archive: Path, model: str, workers: int) -> str:
    return str(run_stage(archive, stage_of(model), MakerConfig(workers=workers)))


def stage_of(model: str) -> Stage:
    return Stage("made@stage", {"tiles": ["image"]}, MADE, Transform, {"model": model}, {"model": model}, BATCH)


def ray_data(archive: Path, model: str, workers: int) -> None:
    made = (
        ray.data.read_parquet(str(archive / "tiles"))
        .select_columns(COLUMNS)
        .map_batches(
            Transform,
            fn_constructor_args=(model,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=BATCH,
            batch_format="pyarrow",
        )
    )
    made.write_parquet(str(archive / "made@ray_data"))


def loop(archive: Path, model: str, workers: int) -> None:
    worker = PlainWorker(archive, model, "made@loop")
    for name in storage.shards(archive / "tiles"):
        worker.work(name)


def without_promise(archive: Path, model: str, workers: int) -> None:
    names, told = storage.shards(archive / "tiles"), (archive, model, "made@without_promise")
    for _ in map_shards(names, PlainWorker, told, MakerConfig(workers=workers)):
        pass


class PlainWorker:
    """Makes shards the shortest way: nothing is checked, synced, named in one step or told to anybody."""

    def __init__(self, archive: Path, model: str, table: str) -> None:
        self.tiles, self.out, self.transform = archive / "tiles", archive / table, Transform(model)
        self.out.mkdir(exist_ok=True)

    def work(self, name: str) -> dict[str, Any]:
        tiles = pq.read_table(self.tiles / name, columns=COLUMNS, partitioning=None)
        made = pa.concat_tables(self.transform(tiles.slice(n, BATCH)) for n in range(0, tiles.num_rows, BATCH))
        pq.write_table(made, self.out / name, compression="zstd", row_group_size=256)
        return count_failures(made["failure"].to_pylist())


WAYS: dict[str, Callable[[Path, str, int], Any]] = {f.__name__: f for f in (stage, ray_data, loop, without_promise)}


# What a measuring process does.


def measure_ways(archive: str, ways: list[str], model: str, workers: int, runs: int) -> dict[str, Any]:
    """Seconds of each way, taken in turns within one Ray session; a first round warms up."""
    home, seconds = Path(archive), {way: list[float]() for way in ways}
    tiles, name = rows_of(home / "tiles"), storage.shards(home / "tiles")[0]
    some = storage.read_shard(home / "tiles" / name, ["image"])["image"].to_pylist()[:128]
    used = time.process_time()
    MODELS[model](some)
    tile_ms = (time.process_time() - used) / len(some) * 1000
    connect()
    for turn in range(runs + 1):
        for way in ways if turn % 2 else ways[::-1]:
            shutil.rmtree(home / f"made@{way}", ignore_errors=True)
            os.sync()
            began = time.perf_counter()
            WAYS[way](home, model, workers)
            seconds[way] += [time.perf_counter() - began] if turn else []
            assert rows_of(home / f"made@{way}") == tiles, way
    return {"tiles": tiles, "tile_ms": tile_ms, "seconds": seconds}


def measure_once(archive: str, way: str, ray_first: bool, checkpoint: str | None = None) -> dict[str, Any]:
    """One run that computes nothing; with a checkpoint, by the V1 reader, the only one that resumes from it."""
    began = time.perf_counter()
    if ray_first:
        connect()
    ray_s = time.perf_counter() - began
    if checkpoint is not None:
        from ray.data.checkpoint import CheckpointConfig

        context = ray.data.DataContext.get_current()
        context.use_datasource_v2 = False
        context.checkpoint_config = CheckpointConfig("tile_id", checkpoint, delete_checkpoint_on_success=False)
    return {"balance": WAYS[way](Path(archive), "nothing", 2), "ray_s": ray_s}


def measured(what: Callable[..., Any], log: Path, limit_s: float = 1e6, sampled: bool = False, **told: Any) -> Any:
    """Measure in a new process: what it found, and the seconds from its start to that.

    Where `sampled`, also the driver's memory over the last tenth of the way, and the most that all processes of its
    Ray session held together (shared pages counted in each).
    """
    samples, ended, late = list[tuple[float, float]](), threading.Event(), threading.Event()
    command, found = [sys.executable, __file__, "--measure", what.__name__, json.dumps(told)], {}
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as Ray has it for an actor of one CPU
    began = time.monotonic()
    with (
        log.open("a") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=one_thread) as process,
    ):
        if sampled:
            threading.Thread(target=sample, args=(process.pid, ended, samples), daemon=True).start()
        timer = threading.Timer(limit_s, lambda: (late.set(), process.terminate()))
        timer.start()
        for line in process.stdout or ():
            if line.startswith(FOUND):
                found = json.loads(line.removeprefix(FOUND)) | {"wall_s": time.monotonic() - began}
                ended.set()
        timer.cancel()
    ended.set()
    if not found and not late.is_set():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    if samples:
        driver, session = zip(*samples, strict=True)
        found |= {"driver_end_mib": median(driver[-max(len(driver) // 10, 1) :]), "session_peak_mib": max(session)}
    return {"wall_s": limit_s, "driver_peak_mib": 0, **found}


def sample(process: int, ended: threading.Event, samples: list[tuple[float, float]]) -> None:
    driver = psutil.Process(process)
    while not ended.wait(SAMPLE_S):
        try:
            own = resident_mib(driver)
            samples.append((own, own + sum(map(resident_mib, driver.children(recursive=True)))))
        except psutil.NoSuchProcess:
            return


def resident_mib(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 2**20
    except psutil.NoSuchProcess:
        return 0.0


def peak_mib() -> float:
    """The most this process ever held; `ru_maxrss` counts what its parent held when it forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


# Archives.


def make_archive(archive: Path, tiles: int, image: Callable[[int], bytes | None], shard: int = SHARD) -> Path:
    shutil.rmtree(archive, ignore_errors=True)
    rows = {}
    for first in range(0, tiles, shard):
        name, numbers = f"part-{first // shard:05d}.parquet", range(first, min(first + shard, tiles))
        storage.publish_shard(archive / "tiles" / name, tile_rows(numbers, image))
        rows[name] = len(numbers)
    storage.write_json(archive / "tiles" / MAKER, {"table": "tiles", "settings": {"domain": "x"}, "sources": {}})
    storage.write_json(archive / "plan" / ROWS, rows)
    return archive


def tile_rows(numbers: range, image: Callable[[int], bytes | None]) -> pa.Table:
    known = {"tile_id": [f"t-{n:09d}" for n in numbers], "domain": ["x"] * len(numbers), "image": map(image, numbers)}
    nulls = [None] * len(numbers)
    return pa.table([pa.array(known.get(f.name, nulls), f.type) for f in schemas.TILES], schema=schemas.TILES)


def make_done(archive: Path, shards: int) -> Path:
    """Tables `plan`, `tiles` and `made@stage`, each of one file of four rows and its hard links."""
    make_archive(archive, 4, lambda _: None)
    first, *others = (f"part-{number:05d}.parquet" for number in range(shards))
    storage.write_json(archive / "plan" / ROWS, dict.fromkeys([first, *others], 4))
    ids = [f"t-{number:09d}" for number in range(4)]
    plan = pa.Table.from_pylist([{"tile_id": i, "source": "/x", "domain": "x"} for i in ids], schema=schemas.PLAN)
    maker = stage_of("nothing").maker(archive)
    schema = storage.with_made_by(MADE, maker)
    made = Transform("nothing")(storage.read_shard(archive / "tiles" / first)).replace_schema_metadata(schema.metadata)
    storage.publish_shard(archive / "plan" / first, plan)
    storage.publish_shard(archive / "made@stage" / first, made)
    storage.write_json(archive / "made@stage" / MAKER, maker)
    for table in ("plan", "tiles", "made@stage"):
        for name in others:
            os.link(archive / table / first, archive / table / name)
    return archive


def random_kb(number: int) -> bytes:
    return np.random.default_rng(number).bytes(1024)


def jpeg(number: int) -> bytes:
    pixels, kept = np.random.default_rng(number % 16).integers(0, 255, (64, 64, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(kept, "JPEG")
    return kept.getvalue()


def rows_of(table: Path) -> int:
    return sum(pq.read_metadata(shard).num_rows for shard in table.rglob("*.parquet"))


# The five parts: each yields what was measured, the figure, the bar (or none), whether it was kept, and raw numbers.

Row = tuple[str, str, str, bool | None, Any]


class Parts:
    def __init__(self, home: Path, runs: int, scale: float) -> None:
        self.home, self.runs, self.log = home, runs, home / "stderr.txt"
        self.sized = lambda tiles: max(int(tiles * scale), 4)

    def compare(self, archive: Path, ours: str, other: str, model: str, workers: int) -> tuple[float, str, Any]:
        """The ratio of the medians, in words too."""
        told = {"archive": str(archive), "ways": [ours, other], "model": model, "workers": workers, "runs": self.runs}
        raw = measured(measure_ways, self.log, **told)
        mine, yours = (median(raw["seconds"][way]) for way in (ours, other))
        return mine / yours, f"{mine / yours:.3f} ({mine:.2f} s against {yours:.2f} s)", raw

    def a(self) -> Iterator[Row]:
        for tiles in (self.sized(10**4), self.sized(10**5)):
            archive = make_archive(self.home / "a", tiles, random_kb)
            ratio, figure, raw = self.compare(archive, "stage", "ray_data", "hashed", 2)
            yield f"a: {tiles:,} tiles hashed, 2 actors: time, of plain Ray Data's", figure, "≤ 1", ratio <= 1, raw

    def b(self) -> Iterator[Row]:
        tiles = self.sized(3000)
        archive = make_archive(self.home / "b", tiles, random_kb)
        ratio, figure, raw = self.compare(archive, "stage", "loop", "slow", 1)
        yield f"b: {tiles:,} tiles of 20 ms, 1 actor: time, of a loop's", figure, "≤ 1 / 0.95", ratio <= 1 / 0.95, raw

    def c(self) -> Iterator[Row]:
        archive = make_archive(self.home / "c", self.sized(6 * SHARD), jpeg, self.sized(SHARD))
        ratio, figure, raw = self.compare(archive, "stage", "without_promise", "layers", 2)
        what = (
            f"c: {raw['tiles']:,} tiles of {raw['tile_ms']:.1f} ms CPU, 2 actors: time, of workers' without the promise"
        )
        yield what, figure, "≤ 1.03", ratio <= 1.03, raw

    def d(self) -> Iterator[Row]:
        shards = self.sized(50_000)
        archive = make_done(self.home / "d", shards)
        for missing in (0, 3):
            raw = []
            for _ in range(self.runs):
                for name in storage.shards(archive / "made@stage")[shards - missing :]:
                    storage.remove(archive / "made@stage" / name)
                told = {"archive": str(archive), "way": "stage", "ray_first": missing > 0}
                raw.append(measured(measure_once, self.log, **told))
            wall_s, ray_s, mib = (median(run[key] for run in raw) for key in ("wall_s", "ray_s", "driver_peak_mib"))
            figure = f"{wall_s:.1f} s, of it {ray_s:.1f} s to start Ray; driver {mib:.0f} MiB"
            kept = wall_s < 10 and mib * 2**20 < 256e6
            yield f"d: {shards:,} shards, {missing} missing, to the balance", figure, "< 10 s, < 256 MB", kept, raw
        ids = self.sized(10**6)
        told = {"way": "ray_data", "ray_first": True, "checkpoint": str(self.home / "d-checkpoint")}
        archive = make_archive(self.home / "d-ray", ids, lambda _: None)
        shutil.rmtree(told["checkpoint"], ignore_errors=True)
        for state in ("0", "all"):
            raw = measured(measure_once, self.log, CHECKPOINT_LIMIT_S, True, archive=str(archive), **told)
            ray_s = raw.get("ray_s", 0)
            figure = (
                f"{raw['wall_s']:.1f} s, of it {ray_s:.1f} s to start Ray" if ray_s else f"stopped at {raw['wall_s']} s"
            )
            figure += f"; driver {raw['driver_peak_mib']:.0f} MiB, session {raw['session_peak_mib']:,.0f} MiB"
            yield f"d: Ray Data's checkpoint, {state} of {ids:,} ids done before", figure, "", None, raw

    def e(self) -> Iterator[Row]:
        few, many = (self.sized(tiles) for tiles in (10**4, 10**6))
        told = {"archive": str(self.home / "e"), "way": "stage", "ray_first": True}
        raw = []
        for tiles in (few, many):
            make_archive(self.home / "e", tiles, lambda _: None)
            raw.append(measured(measure_once, self.log, sampled=True, **told))
        for key, word in (("driver_peak_mib", "peak"), ("driver_end_mib", "last tenth")):
            less, more = (run[key] for run in raw)
            figure = f"{more / less:.3f} ({more:.0f} MiB against {less:.0f} MiB)"
            yield f"e: driver, {word}, {many:,} tiles: of {few:,}", figure, "≤ 1.05", more <= 1.05 * less, raw


def page(rows: list[Row], runs: int) -> str:
    """The result as it is kept beside this script."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line).split(": ")[1]
    lines = [
        f"# {(__doc__ or '').splitlines()[0]}\n",
        f"Commit {commit}, Ray {ray.__version__}, pyarrow {pa.__version__}, versions of `constraints.txt`,",
        f"{os.cpu_count()} cores of {cpu}, {psutil.virtual_memory().total / 2**30:.0f} GiB. Medians of {runs}.\n",
        f"```\npython benchmarks/tables.py {' '.join(sys.argv[1:])}\n```\n",
        "| what | figure | bar | kept |\n|---|---|---|---|",
        *(f"| {what} | {figure} | {bar} | {KEPT[kept]} |" for what, figure, bar, kept, _ in rows),
        "\n| what | way | seconds of each run |\n|---|---|---|",
    ]
    for what, *_, raw in rows:
        seconds = raw.get("seconds", {}) if isinstance(raw, dict) else {"all": [run["wall_s"] for run in raw]}
        lines += [f"| {what} | {way} | {' '.join(f'{s:.2f}' for s in of)} |" for way, of in seconds.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        found = {f.__name__: f for f in (measure_ways, measure_once)}[sys.argv[2]](**json.loads(sys.argv[3]))
        print(FOUND + json.dumps({**found, "driver_peak_mib": peak_mib()}), flush=True)
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", nargs="+", choices="abcde", default=list("abcde"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sizes")
    parser.add_argument("--hardware", default=f"cpu{os.cpu_count()}", help="a word in the name of the page")
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    parts, rows = Parts(told.out.absolute(), told.runs, told.scale), list[Row]()
    for part in told.part:
        for row in getattr(parts, part)():
            rows.append(row)
            print(*row[:2], sep=": ", file=sys.stderr, flush=True)
    result = [dict(zip(("what", "figure", "bar", "kept", "raw"), row, strict=True)) for row in rows]
    storage.write_json(told.out / "result.json", {"result": result})
    (told.out / f"tables_{told.hardware}_{time.strftime('%Y%m')}.md").write_text(text := page(rows, told.runs))
    print(json.dumps(result, indent=2), text, sep="\n")


if __name__ == "__main__":
    main()
