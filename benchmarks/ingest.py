"""How fast are tiles read from a scene, and how much of it, beside a plain loop over rasterio and beside rio-tiler?

    python benchmarks/ingest.py --out FOLDER [--side 20000] [--tiles 300] [--rounds 5] [--rio-tiler PYTHON] [--whole]

One thread, no Ray: what `ingest` does in a worker, from a planned row to `[H, W, 3]`. A COG of 20,000 x 20,000 px is
written first. `pixels`: windows as they lie. `metres`: the same system, a coarser ground sample distance. `xyz`: a web
map. Each is read by urbancross, and by a loop that opens the scene once and reads each window with rasterio (`pixels`,
`metres`), or with WarpedVRT (`xyz`); and by rio-tiler, in an environment of its own, as its users call it. Bytes are
those that the process asked the kernel for (/proc/self/io), of another process for each. Encoding to PNG is left out of
all: it is the same for each. `--whole`: the command `urbancross ingest` on all of the scene, two workers, and how much
memory its largest process held, and all of them together (what they share counted once).
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDE_PX = 224
GRIDS = {"pixels": {}, "metres": {"gsd": 2.3}, "xyz": {"zoom": 16}}
ZOOM_PX = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--tiles", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rio-tiler", help="a Python that has rio-tiler; default: left out")
    parser.add_argument("--one", nargs=2, metavar=("GRID", "READER"), help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help="the command, too")
    told = parser.parse_args()
    home = Path(told.out).absolute()
    if told.one:
        print(json.dumps(measure(home, *told.one)))
        return
    home.mkdir(parents=True, exist_ok=True)
    scene = home / "scene.tif"
    if not scene.exists():
        write(scene, told.side)
    for grid in GRIDS:
        plan(scene, home, grid, told.tiles)
    readers = {"urbancross": sys.executable, "rasterio": sys.executable}
    readers |= {"rio-tiler": told.rio_tiler} if told.rio_tiler else {}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(told.rounds):
        for grid in GRIDS:
            for reader, python in readers.items():
                command = [python, __file__, "--out", str(home), "--one", grid, reader]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found.setdefault((grid, reader), []).append(json.loads(out.splitlines()[-1]))
    (home / "result.json").write_text(json.dumps({f"{g} {r}": rows for (g, r), rows in found.items()}, indent=2))
    names = ("grid", "reader", "tiles/s, median", "of rasterio's loop", "MiB read", "of rasterio's", "peak MiB")
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for (grid, reader), rows in found.items():
        plain = found[grid, "rasterio"]
        rate, base = (statistics.median(row["tiles_s"] for row in each) for each in (rows, plain))
        read, of = (statistics.median(row["read_mib"] for row in each) for each in (rows, plain))
        peak = max(row["peak_mib"] for row in rows)
        print(f"| {grid} | {reader} | {rate:.0f} | {rate / base:.2f} | {read:.1f} | {read / of:.2f} | {peak:.0f} |")
    if told.whole:
        print("\n" + "\n\n".join(whole(scene, home, shard_tiles) for shard_tiles in (2048, 512)))


def whole(scene: Path, home: Path, shard_tiles: int) -> str:
    """`ingest` of the scene, and what its processes held, ten times a second."""
    import psutil

    scenes, archive = home / "scenes", home / "archive"
    scenes.mkdir(exist_ok=True)
    (scenes / "scene.tif").unlink(missing_ok=True)
    (scenes / "scene.tif").symlink_to(scene)
    shutil.rmtree(archive, ignore_errors=True)
    command = [sys.executable, "-m", "urbancross.cli", "ingest", "--source", str(scenes), "--archive", str(archive)]
    command += ["--domain", "d", "--workers", "2", "--shard-tiles", str(shard_tiles)]
    largest, together, began = Counter[str](), 0.0, time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:
            held = 0.0
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    name, memory = " ".join(each.cmdline())[:40], each.memory_full_info()
                    held += memory.pss / 2**20
                    largest[name] = max(largest[name], int(memory.rss / 2**20))
            together = max(together, held)
            time.sleep(0.1)
        seconds, out = time.perf_counter() - began, process.stdout.read() if process.stdout else ""
    rows = [f"{mib} MiB: {name}" for name, mib in largest.most_common(5)]
    out = f"shards of {shard_tiles} tiles: {out.strip()}"
    return "\n".join([out, f"{seconds:.1f} s; all processes together {together:.0f} MiB; the largest:", *rows])


def write(scene: Path, side: int) -> None:
    """A COG of waves and noise, a strip at a time."""
    import numpy as np
    import rasterio
    from rasterio.shutil import copy
    from rasterio.transform import from_origin

    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    profile |= {"crs": "EPSG:32635", "transform": from_origin(500_000, 6_000_000, 1, 1), "compress": "deflate"}
    plain = scene.with_suffix(".plain.tif")
    rng = np.random.default_rng(0)
    with rasterio.open(plain, "w", **profile) as raster:
        for top in range(0, side, 512):
            y, x = np.mgrid[top : min(top + 512, side), :side]
            for band in (1, 2, 3):
                wave = 120 + 80 * np.sin(x / 97 + band) * np.cos(y / 83) + rng.integers(0, 12, y.shape)
                raster.write(wave.astype(np.uint8), band, window=((top, top + len(y)), (0, side)))
    copy(plain, scene, driver="COG", compress="deflate", overview_resampling="average")
    plain.unlink()


def plan(scene: Path, home: Path, grid: str, tiles: int) -> None:
    """Rows of some tiles that lie side by side, as JSON."""
    from urbancross.scenes.tiling import Tiling, grid_of

    told = {"gsd": None, "zoom": None} | GRIDS[grid]
    side = ZOOM_PX if grid == "xyz" else SIDE_PX
    planned = Tiling(grid_of(grid, side, told["gsd"], told["zoom"], 0.0)).plan(scene, "s")
    middle = max(len(planned) // 2 - tiles // 2, 0)
    rows = [
        {"source": str(scene), "window": cell.window, "crs": cell.crs, "transform": cell.transform, "side": side,
         "tile_id": cell.tile_id, "colours": vars(colours)}
        for cell, colours in planned[middle : middle + tiles]
    ]  # fmt: skip
    (home / f"{grid}.json").write_text(json.dumps(rows))


def measure(home: Path, grid: str, reader: str) -> dict[str, float]:
    rows = json.loads((home / f"{grid}.json").read_text())
    read = READERS[reader](rows[0], grid)
    read(rows[0])  # modules and the header
    before, began = bytes_read(), time.perf_counter()
    for row in rows:
        read(row)
    seconds = time.perf_counter() - began
    return {"tiles_s": len(rows) / seconds, "read_mib": (bytes_read() - before) / 2**20, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory that this process held; what getrusage tells begins with that of who started it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def by_urbancross(first: dict[str, Any], grid: str) -> Callable[[dict[str, Any]], Any]:
    from urbancross.scenes import tiling
    from urbancross.scenes.grids import Pixels
    from urbancross.scenes.tiling import Reader, Tiling

    tiling.encode = lambda pixels: pixels
    return Reader(Tiling(Pixels(first["side"]))).read


def by_rasterio(first: dict[str, Any], grid: str) -> Callable[[dict[str, Any]], Any]:
    import numpy as np
    import rasterio
    from rasterio import Affine
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT
    from rasterio.windows import Window, from_bounds

    raster = rasterio.open(first["source"])

    def read(row: dict[str, Any]) -> Any:
        side = row["side"]
        if row["window"]:
            x0, y0, x1, y1 = row["window"]
            window = Window(x0, y0, x1 - x0, y1 - y0)
            return np.moveaxis(raster.read([1, 2, 3], window=window), 0, -1), raster.dataset_mask(window=window)
        transform = Affine(*row["transform"])
        if grid == "metres":
            left, top = transform @ (0, 0)
            right, bottom = transform @ (side, side)
            window, shape = from_bounds(left, bottom, right, top, raster.transform), (side, side)
            pixels = raster.read([1, 2, 3], window=window, out_shape=(3, *shape), resampling=Resampling.bilinear)
            return np.moveaxis(pixels, 0, -1), raster.dataset_mask(window=window, out_shape=shape)
        options = {"crs": row["crs"], "transform": transform, "width": side, "height": side, "add_alpha": True}
        with WarpedVRT(raster, resampling=Resampling.bilinear, **options) as warped:
            return np.moveaxis(warped.read([1, 2, 3]), 0, -1), warped.dataset_mask()

    return read


def by_rio_tiler(first: dict[str, Any], grid: str) -> Callable[[dict[str, Any]], Any]:
    from affine import Affine
    from rio_tiler.io import Reader

    reader = Reader(first["source"])

    def read(row: dict[str, Any]) -> Any:
        side = row["side"]
        if grid == "xyz":
            z, x, y = map(int, row["tile_id"].partition("/")[2].split("-"))
            return reader.tile(x, y, z, tilesize=side, resampling_method="bilinear", reproject_method="bilinear").data
        left, top = Affine(*row["transform"]) * (0, 0)
        right, bottom = Affine(*row["transform"]) * (side, side)
        crs = reader.dataset.crs
        return reader.part((left, bottom, right, top), bounds_crs=crs, dst_crs=crs, width=side, height=side,
                           resampling_method="bilinear").data  # fmt: skip

    return read


READERS = {"urbancross": by_urbancross, "rasterio": by_rasterio, "rio-tiler": by_rio_tiler}


if __name__ == "__main__":
    main()
