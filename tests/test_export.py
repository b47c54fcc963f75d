"""`export` on archives made by hand: what stands in the files, and what is counted."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely

from urbancross import cli, schemas, storage
from urbancross.errors import ConfigError
from urbancross.segments import layers
from urbancross.segments.choice import choose
from urbancross.segments.masks import Mask

UTM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 6_000_000.0)
TURNED = (6.0, 8.0, 500_000.0, 8.0, -6.0, 6_000_000.0)  # pixels of 10 m, turned
NAME = "part-{:05d}.parquet"


def segments_of(*boxes: tuple[int, int, int, int], h: int = 8, w: int = 10) -> list[dict[str, Any]]:
    masks = []
    for x0, y0, x1, y1 in boxes:
        pixels = np.zeros((h, w), bool)
        pixels[y0:y1, x0:x1] = True
        masks.append(Mask.of(pixels, stability=0.5))
    return choose(masks, max_area=1.0, min_area=0)


def tile(name: str, **known: Any) -> dict[str, Any]:
    return {"tile_id": name, "domain": "north", "image": b"", "split": "train", "gsd_m": 10.0, **known}


def write(archive: Path, tiles: list[dict], segments: list[list[dict] | str], ranks: list[dict] | None = None) -> Path:
    """An archive of two tiles a shard; a text in place of segments is why there are none."""
    found = [
        {"tile_id": row["tile_id"], "segments": [], "failure": told}
        if isinstance(told, str)
        else {"tile_id": row["tile_id"], "segments": told}
        for row, told in zip(tiles, segments, strict=True)
    ]
    made = {"table": "segments@grid", "settings": {"engine": "grid"}, "sources": {"tiles": "x"}, "run": {"a": 1}}
    tables = {"tiles": (tiles, schemas.TILES), "segments@grid": (found, storage.with_made_by(schemas.SEGMENTS, made))}
    if ranks is not None:
        rows = [{"tile_id": row["tile_id"], **rank} for row, rank in zip(tiles, ranks, strict=True)]
        of = storage.with_made_by(schemas.RANKS, {"table": "ranks@m", "sources": {"segments@grid": "x"}})
        tables["ranks@m"] = (rows, of)
    for table, (rows, schema) in tables.items():
        for number, start in enumerate(range(0, len(rows), 2)):
            shard = pa.Table.from_pylist(rows[start : start + 2], schema=schema)
            storage.publish_shard(archive / table / NAME.format(number), shard)
    return archive


def export(archive: Path, out: Path, **settings: Any) -> str:
    return str(cli.call("export", cli.VERBS["export"].kind(archive=str(archive), out=str(out), **settings)))


BOXES = ((0, 0, 5, 8), (5, 0, 10, 4), (5, 4, 10, 8))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(
        tmp_path / "archive",
        [
            tile("a", crs="EPSG:32635", transform=UTM),
            tile("b", crs="EPSG:32635", transform=TURNED, split="test"),
            tile("c", bounds=[10, 50, 11, 51]),
            tile("d"),
            tile("e", crs="EPSG:3857", transform=(10, 0, 1e6, 0, -10, 8e6), failure=None),
            tile("f", crs="EPSG:32635", failure="failed:no such file", image=None),
            tile("g", crs="no system", transform=UTM),
        ],
        [
            segments_of(*BOXES), segments_of(*BOXES), segments_of(*BOXES), segments_of(*BOXES),
            "skipped:no mask within the bounds", "skipped:no input", segments_of(*BOXES),
        ],
    )  # fmt: skip


def test_every_system_gets_a_file_and_every_tile_is_accounted_for(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = export(archive, tmp_path / "out")
    assert line == "read 7 = written 3 + done before 0 + skipped 3 + failed 1"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "segments-EPSG-32635.parquet", "segments-EPSG-4326.parquet",
    ]  # fmt: skip
    told = capsys.readouterr()
    assert "out/segments-EPSG-32635.parquet: 6 segments" in told.out
    assert "failed 1 × its reference system cannot be read" in told.err
    assert "skipped 1 × no place on the globe, 1 × no mask within the bounds, 1 × no such file" in told.err


def test_rows_say_what_the_tables_say_and_shapes_lie_where_the_pixels_do(archive: Path, tmp_path: Path):
    export(archive, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "segments-EPSG-32635.parquet").to_pylist()
    assert [(row["tile_id"], row["rank"]) for row in rows] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
        ("b", 1),
        ("b", 2),
    ]
    first = rows[0]
    assert shapely.from_wkb(first["geometry"]).equals(shapely.box(500_000, 5_999_920, 500_050, 6_000_000))
    assert first["bbox"] == {"xmin": 500_000, "ymin": 5_999_920, "xmax": 500_050, "ymax": 6_000_000}
    assert (first["domain"], first["split"], first["gsd_m"], first["placed_by"]) == ("north", "train", 10, "transform")
    assert (first["engine"], first["segments"], first["area_px"], first["stability"]) == (
        "grid",
        "segments@grid",
        40,
        0.5,
    )
    assert first["predicted_iou"] is None
    assert first["score"] == pytest.approx(0.5 * 0.5**0.5)
    assert first["area_m2"] == pytest.approx(4000 / 0.9996**2, rel=1e-5)  # the scale of UTM on its meridian
    turned = shapely.from_wkb(rows[3]["geometry"])
    corners = [(500_000, 6_000_000), (500_030, 6_000_040), (500_094, 5_999_992), (500_064, 5_999_952)]
    assert turned.equals(shapely.Polygon(corners))  # (5, 0) -> 6·5, 8·5; (0, 8) -> 8·8, -6·8
    assert turned.area == 4000


def test_the_metadata_is_geoparquet_with_the_system_and_what_made_the_segments(archive: Path, tmp_path: Path):
    export(archive, tmp_path / "out", simplify=0.5)
    file = tmp_path / "out" / "segments-EPSG-32635.parquet"
    schema = storage.read_schema(file)
    geo = json.loads(schema.metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert (geo["version"], column["encoding"], column["orientation"]) == ("1.1.0", "WKB", "counterclockwise")
    assert pyproj.CRS.from_json_dict(column["crs"]).to_epsg() == 32635
    edges = [row["bbox"]["xmin"] for row in pq.read_table(file).to_pylist()]
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    statistics = pq.read_metadata(file).row_group(0)
    found = {
        statistics.column(i).path_in_schema: statistics.column(i).statistics for i in range(statistics.num_columns)
    }
    assert found["bbox.xmin"].min == edges[0]  # row groups can be left out by their box
    made = storage.made_by(schema)
    assert made["settings"] == {"split": None, "max_segments": None, "simplify": 0.5}
    assert made["made_by"]["segments@grid"]["settings"] == {"engine": "grid"}
    assert "run" not in made["made_by"]["segments@grid"]


def test_geopandas_opens_a_file_in_its_own_system(archive: Path, tmp_path: Path):
    export(archive, tmp_path / "out")
    frame = geopandas.read_parquet(tmp_path / "out" / "segments-EPSG-32635.parquet")
    assert frame.crs.to_epsg() == 32635
    assert frame.geometry.is_valid.all()
    np.testing.assert_allclose(frame.area, frame["area_px"] * 100)
    near = geopandas.read_parquet(tmp_path / "out" / "segments-EPSG-32635.parquet", bbox=(5e5, 5.99994e6, 500_001, 6e6))
    assert len(near) < len(frame)


def test_tiles_with_bounds_alone_lie_north_up_in_them_also_across_the_antimeridian(tmp_path: Path):
    tiles = [tile("a", bounds=[10, 50, 11, 51]), tile("b", bounds=[179, 0, -179, 2])]
    archive = write(tmp_path / "archive", tiles, [segments_of((0, 0, 10, 8))] * 2)
    assert export(archive, tmp_path / "out").startswith("read 2 = written 2 ")
    file = tmp_path / "out" / "segments-EPSG-4326.parquet"
    here, there = pq.read_table(file).to_pylist()
    assert shapely.from_wkb(here["geometry"]).equals(shapely.box(10, 50, 11, 51))
    assert here["placed_by"] == "bounds"
    geod = pyproj.Geod(ellps="WGS84")
    ring = shapely.segmentize(shapely.box(10, 50, 11, 51), 0.01)  # geodesics between near points follow the parallel
    assert here["area_m2"] == pytest.approx(geod.geometry_area_perimeter(ring)[0], rel=2e-3)
    halves = shapely.MultiPolygon([shapely.box(179, 0, 180, 2), shapely.box(-180, 0, -179, 2)])
    assert shapely.from_wkb(there["geometry"]).equals(halves)
    assert there["area_m2"] == pytest.approx(
        abs(geod.geometry_area_perimeter(shapely.box(179, 0, 181, 2))[0]), rel=2e-3
    )


def test_split_and_max_segments_leave_the_others_out_of_all_counts(archive: Path, tmp_path: Path):
    assert export(archive, tmp_path / "out", split="test", max_segments=2).startswith("read 1 = written 1 ")
    rows = pq.read_table(tmp_path / "out" / "segments-EPSG-32635.parquet").to_pylist()
    assert [(row["tile_id"], row["rank"]) for row in rows] == [("b", 0), ("b", 1)]
    with pytest.raises(ConfigError, match="has no tile of split valid"):
        export(archive, tmp_path / "other", split="valid")


def test_ranks_say_how_well_segments_fit_and_to_which_phrase(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiles = [tile("a", crs="EPSG:32635", transform=UTM), tile("b", crs="EPSG:32635", transform=UTM)]
    tiles.append(tile("c", crs="EPSG:32635", transform=UTM))
    ranks = [
        {"scores": [0.25, 0.75], "phrases": ["a lake", "boats"]},
        {"failure": "skipped:no caption"},
        {"scores": [0.5], "phrases": ["one too few"]},
    ]
    archive = write(tmp_path / "archive", tiles, [segments_of(*BOXES[:2])] * 3, ranks)
    assert export(archive, tmp_path / "out", ranks="m").endswith("= written 2 + done before 0 + failed 1")
    assert "failed 1 × n ranks for n segments" in capsys.readouterr().err
    rows = pq.read_table(tmp_path / "out" / "segments-EPSG-32635.parquet").to_pylist()
    assert [(row["caption_score"], row["phrase"]) for row in rows] == [
        (0.25, "a lake"), (0.75, "boats"), (None, None), (None, None),
    ]  # fmt: skip
    export(archive, tmp_path / "without")
    assert "phrase" not in storage.read_schema(tmp_path / "without" / "segments-EPSG-32635.parquet").names


def test_ranks_of_other_segments_are_refused(tmp_path: Path):
    tiles = [tile("a", crs="EPSG:32635", transform=UTM)]
    archive = write(tmp_path / "archive", tiles, [segments_of(*BOXES)], [{"scores": [0.1] * 3, "phrases": ["x"] * 3}])
    (archive / "segments@grid").rename(archive / "segments@other")
    with pytest.raises(ConfigError, match=r"ranks@m ranks segments@grid, not segments@other; give --segments grid"):
        export(archive, tmp_path / "out", ranks="m")


def test_rows_are_written_as_soon_as_there_are_enough_for_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiles = [tile(f"t{i}", crs="EPSG:32635", transform=UTM) for i in range(7)]
    archive = write(tmp_path / "archive", tiles, [segments_of(*BOXES)] * 7)

    def written(out: str) -> tuple[list[int], pa.Table]:
        export(archive, tmp_path / out)
        file = pq.ParquetFile(tmp_path / out / "segments-EPSG-32635.parquet")
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], file.read()

    monkeypatch.setattr(layers, "ROW_GROUP", 12)  # a shard gives 6
    sizes, rows = written("parts")
    assert sizes == [12, 9]
    monkeypatch.undo()
    assert written("whole") == ([21], rows)


@pytest.mark.parametrize("known", [{}, {"crs": "EPSG:32635"}])
def test_an_archive_without_places_ends_in_one_line_and_leaves_nothing(tmp_path: Path, known: dict[str, Any]):
    archive = write(tmp_path / "archive", [tile("a", **known), tile("b")], [segments_of(*BOXES)] * 2)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"no tile of .* has a place on the globe: nothing to export") as caught:
        export(archive, tmp_path / "new" / "out")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_left_where_no_tile_has_segments_or_the_folder_is_taken(archive: Path, tmp_path: Path):
    empty = write(tmp_path / "empty", [tile("a", crs="EPSG:32635", transform=UTM)], ["skipped:one colour"])
    with pytest.raises(ConfigError, match=r"has no segment to export \(1 × one colour\)"):
        export(empty, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["archive", "empty"]
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already; remove it, or give another name"):
        export(archive, tmp_path / "out")


def test_a_system_without_a_code_gets_a_name_of_its_own(tmp_path: Path):
    local = pyproj.CRS("+proj=tmerc +lat_0=51.5 +lon_0=9.25 +k=0.99 +x_0=1234 +ellps=GRS80 +units=m").to_wkt()
    archive = write(tmp_path / "archive", [tile("a", crs=local, transform=UTM)], [segments_of(*BOXES)])
    export(archive, tmp_path / "out")
    (file,) = (tmp_path / "out").iterdir()
    assert len(file.name.removeprefix("segments-crs-").removesuffix(".parquet")) == 8
    column = json.loads(storage.read_schema(file).metadata[b"geo"])["columns"]["geometry"]
    assert pyproj.CRS.from_json_dict(column["crs"]) == pyproj.CRS(local)


def test_a_table_of_an_earlier_version_is_placed_by_bounds_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiles = [tile("a", crs="EPSG:32635", transform=UTM, bounds=[27, 54.1, 27.002, 54.101])]
    archive = write(tmp_path / "archive", tiles, [segments_of(*BOXES)])
    shard = archive / "tiles" / NAME.format(0)
    old = storage.read_shard(shard).drop_columns(["transform"])
    shard.unlink()
    storage.publish_shard(shard, old)
    assert export(archive, tmp_path / "out").startswith("read 1 = written 1 ")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["segments-EPSG-4326.parquet"]
    assert "1 tiles of scenes are placed by their bounds" in capsys.readouterr().err
