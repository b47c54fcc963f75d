"""What is known of tiles, and filters over it, each against a plain loop over rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely
from searchable import name, publish
from shapely.geometry.base import BaseGeometry

from urbancross import schemas, storage
from urbancross.archive import area_of, box_of
from urbancross.errors import ConfigError
from urbancross.index.facts import FACTS, Filters, facts_of
from urbancross.index.folder import table_bytes
from urbancross.index.moments import span_of

SHARDS, ROWS = 3, 120
TAGS = ("natural=water", "natural=wood", "nat=x", "highway=path", "natural=wood2", "note=a=b")
TIMES = (None, "2023", "2024-05", "2024-05-17", "2024-05-17T10:30Z", "2024-01-01/2024-06-30", "no time")


def random_rows(shard: int) -> list[dict[str, Any]]:
    """Tiles all over the globe, many of them across the antimeridian; each seventh without a place."""
    rng = np.random.default_rng(shard)
    rows = []
    for i in range(ROWS):
        west, south = float(rng.uniform(-180, 180)), float(rng.uniform(-80, 70))
        if i % 3 == 0:
            west = float(rng.uniform(170, 180)) if i % 2 else float(rng.uniform(-180, -170))
        east = west + float(rng.uniform(0.1, 8))
        bounds = [west, south, east - 360 if east > 180 else east, south + float(rng.uniform(0.1, 8))]
        rows.append(
            {
                "tile_id": f"t{shard}-{i}",
                "domain": f"country{rng.integers(3)}",
                "split": (None, "train", "valid")[rng.integers(3)],
                "bounds": None if i % 7 == 0 else bounds,
                "datetime": TIMES[rng.integers(len(TIMES))],
                "failure": "failed:x" if i == 5 else None,
                "center_tags": [str(tag) for tag in rng.choice(TAGS, rng.integers(3), replace=False)] or None,
                "surrounding_tags": [str(tag) for tag in rng.choice(TAGS, rng.integers(2), replace=False)],
            }
        )
    return rows


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last shard was not geotagged."""
    folder = tmp_path_factory.mktemp("facts")
    for shard in range(SHARDS):
        rows = random_rows(shard)
        publish(folder, "tiles", shard, of(rows, schemas.TILES), schemas.TILES)
        if shard < SHARDS - 1:
            publish(folder, "geotags", shard, of(rows, schemas.GEOTAGS), schemas.GEOTAGS)
    return folder


def of(rows: list[dict[str, Any]], schema: pa.Schema) -> list[dict[str, Any]]:
    return [{key: row[key] for key in schema.names if key in row} for row in rows]


@pytest.fixture(scope="module")
def rows(archive: Path) -> list[dict[str, Any]]:
    return [
        row | ({"center_tags": None, "surrounding_tags": None} if shard == SHARDS - 1 else {})
        for shard in range(SHARDS)
        for row in random_rows(shard)
    ]


def unrolled(bounds: list[float]) -> BaseGeometry:
    west, south, east, north = bounds
    return shapely.box(west, south, east if west <= east else east + 360, north)


def meets(bounds: list[float] | None, area: BaseGeometry) -> bool:
    """On a map of five worlds side by side."""
    if bounds is None:
        return False
    tile = unrolled(bounds)
    return any(shapely.affinity.translate(tile, 360 * k).intersects(area) for k in (-2, -1, 0, 1, 2))


def span(row: dict[str, Any]) -> tuple[int, int] | None:
    return None if row["datetime"] in (None, "no time") else span_of(row["datetime"])


def fits(row: dict[str, Any], wanted: dict[str, Any]) -> bool:
    tags = [*(row["center_tags"] or []), *(row["surrounding_tags"] or [])]
    when = span(row)
    checks = {
        "domain": lambda value: row["domain"] == value,
        "split": lambda value: row["split"] == value,
        "tags": lambda value: all(any(tag == t if "=" in t else tag.split("=")[0] == t for tag in tags) for t in value),
        "bbox": lambda value: meets(row["bounds"], unrolled(value)),
        "area": lambda value: meets(row["bounds"], value),
        "since": lambda value: when is not None and when[1] >= span_of(value)[0],
        "until": lambda value: when is not None and when[0] <= span_of(value)[1],
    }
    return all(checks[key](value) for key, value in wanted.items())


def filters(wanted: dict[str, Any]) -> Filters:
    told = dict(wanted)
    if "bbox" in told:
        told["bbox"] = box_of(told["bbox"])
    if "area" in told:
        told["area"] = area_of(told["area"])
    return Filters(**told | {key: span_of(told[key]) for key in ("since", "until") if key in told})


HOLED = shapely.Polygon([(-60, -40), (60, -40), (60, 60), (-60, 60)], [[(-50, -30), (-50, 50), (50, 50), (50, -30)]])
PAST_180 = shapely.Polygon([(165, -50), (200, -40), (190, 50), (170, 40)])
WANTED: list[dict[str, Any]] = [
    {"domain": "country1"},
    {"domain": "nowhere"},
    {"split": "valid"},
    {"tags": ("natural=wood",)},
    {"tags": ("natural",)},
    {"tags": ("nat",)},
    {"tags": ("note=a=b",)},
    {"tags": ("natural", "highway=path")},
    {"tags": ("nothing",)},
    {"bbox": (-20.0, -30.0, 70.0, 40.0)},
    {"bbox": (171.0, -60.0, 180.0, 60.0)},
    {"bbox": (-180.0, -60.0, -171.0, 60.0)},
    {"bbox": (174.0, -60.0, -174.0, 60.0)},
    {"bbox": (100.0, -60.0, -130.0, 60.0)},
    {"bbox": (-180.0, -90.0, 180.0, 90.0)},
    {"area": HOLED},
    {"area": shapely.MultiPolygon([shapely.box(-100, -20, -60, 20), HOLED.intersection(shapely.box(0, -90, 90, 90))])},
    {"area": PAST_180},
    {"area": shapely.affinity.translate(PAST_180, -360)},
    {"area": shapely.MultiPolygon([PAST_180, shapely.box(0, 0, 30, 30)])},
    {"since": "2024"},
    {"until": "2023"},
    {"since": "2024-05-17", "until": "2024-05-17"},
    {"since": "2024-05-17T10:30Z"},
    {"until": "2024-05-17T10:30Z"},
    {"since": "2024-05-17T10:30:00.000001Z"},
    {"until": "2024-05-17T10:29:59.999999Z"},
    {"since": "2025"},
    {
        "domain": "country1",
        "split": "train",
        "tags": ("natural",),
        "bbox": (-150.0, -80.0, 150.0, 80.0),
        "area": HOLED.envelope,
        "since": "2023-06",
        "until": "2024-12",
    },
    {"bbox": (160.0, -80.0, -160.0, 80.0), "area": PAST_180, "until": "2024", "tags": ("natural",)},
]


@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: "-".join(wanted))
def test_a_filter_leaves_the_rows_that_a_plain_loop_leaves(archive: Path, rows: list[dict], wanted: dict[str, Any]):
    facts = facts_of(archive, storage.shards(archive / "tiles"))
    expected = np.array([fits(row, wanted) for row in rows])
    np.testing.assert_array_equal(filters(wanted).allowed(facts), expected)
    if wanted not in ({"domain": "nowhere"}, {"tags": ("nothing",)}, {"since": "2025"}):
        assert expected.any()  # or nothing was tried
    assert not expected.all()


def test_a_filter_of_nothing_leaves_all(archive: Path):
    assert not Filters()
    assert Filters().allowed(facts_of(archive, [name(0)])).all()
    assert all(filters(wanted) for wanted in WANTED)


def test_a_time_at_the_very_edge_is_within(archive: Path):
    row = {"tile_id": "t", "domain": "d", "datetime": "2024-05-17T10:30:00Z"}
    publish(archive / "edge", "tiles", 0, [row], schemas.TILES)
    facts = facts_of(archive / "edge", [name(0)])
    for moment, since, until in (("09:59:59", True, False), ("10:30:00", True, True), ("10:30:01", False, True)):
        edge = span_of(f"2024-05-17T{moment}Z")
        assert (Filters(since=edge).allowed(facts)[0], Filters(until=edge).allowed(facts)[0]) == (since, until)


def test_facts_say_of_every_row_where_it_is_and_what_is_known_of_it(archive: Path, rows: list[dict]):
    facts = facts_of(archive, storage.shards(archive / "tiles"), [4, 9, 7])
    assert facts.schema.equals(FACTS)
    assert facts["shard"].to_pylist() == [number for number in (4, 9, 7) for _ in range(ROWS)]
    assert facts["row"].to_pylist() == list(range(ROWS)) * SHARDS
    for told, row in zip(facts.to_pylist(), rows, strict=True):
        assert [told[key] for key in ("tile_id", "domain", "split")] == [row[k] for k in ("tile_id", "domain", "split")]
        assert told["tags"] == [*(row["center_tags"] or []), *(row["surrounding_tags"] or [])]
        assert (told["from_us"], told["to_us"]) == (span(row) or (None, None))
        place = [told[key] for key in ("west", "south", "east", "north")]
        assert np.isnan(place).all() if row["bounds"] is None else place == row["bounds"]


def test_facts_of_shards_with_words_of_their_own_come_through_a_file(archive: Path):
    tables = [facts_of(archive, [each]) for each in storage.shards(archive / "tiles")]
    joined = pa.concat_tables(tables)
    kept = pa.ipc.open_file(pa.py_buffer(table_bytes(joined.unify_dictionaries().combine_chunks()))).read_all()
    assert str(kept.to_pylist()) == str(joined.to_pylist())  # as texts, for NaN is not NaN
    for wanted in WANTED:
        np.testing.assert_array_equal(filters(wanted).allowed(kept), filters(wanted).allowed(joined))
        sliced = filters(wanted).allowed(joined.slice(37, 200))
        np.testing.assert_array_equal(sliced, filters(wanted).allowed(joined)[37:237])


def test_no_shards_have_no_facts(archive: Path):
    assert facts_of(archive, []).schema.equals(FACTS)
    assert Filters(domain="d", tags=("a",)).allowed(facts_of(archive, [])).tolist() == []


@pytest.mark.parametrize(
    "told",
    [
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]]},  # a bow tie
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 100], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1e9, 0], [0, 1], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[["a", 0]]]},
        {"type": "Polygon"},
        {"type": "FeatureCollection", "features": []},
        {"type": "Feature", "geometry": None},
        {"features": 1},
        [],
        "POLYGON",
        None,
        shapely.Polygon(),
        shapely.Point(1, 2),
        shapely.LineString([(0, 0), (1, 1)]),
        shapely.Polygon([(0, 0), (float("nan"), 1), (1, 1)]),
    ],
)
def test_what_is_no_area_on_the_globe_is_told_in_a_line(told: Any):
    with pytest.raises(ConfigError, match=r"^area: [^\n]+$"):
        area_of(told)


def test_geojson_of_every_kind_is_an_area():
    ring = [[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]
    polygon = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {}, "geometry": polygon}
    far = {"type": "MultiPolygon", "coordinates": [[[[x + 50, y] for x, y in ring]]]}
    both = {"type": "FeatureCollection", "features": [feature, {"type": "Feature", "geometry": far}]}
    assert area_of(polygon).equals(shapely.box(0, 0, 2, 1))
    assert area_of(feature).equals(shapely.box(0, 0, 2, 1))
    assert area_of(both).equals(shapely.box(0, 0, 2, 1) | shapely.box(50, 0, 52, 1))


@pytest.mark.parametrize(
    "told",
    [
        (1, 2, 3),
        (1, 2, 3, 4, 5),
        (0, 10, 1, 5),
        (0, 0, 0, 1),
        (0, 1, 2, 1),
        (0, -91, 1, 0),
        (-181, 0, 1, 1),
        (10, 0, -10, 1),  # more than half the way around: west and east mixed up
        (float("nan"), 0, 1, 1),
        ("a", 0, 1, 1),
        (None, 0, 1, 1),
        5,
    ],
)
def test_what_is_no_box_is_told_in_a_line(told: Any):
    with pytest.raises(ConfigError, match=r"^bbox .*: want west, south, east, north in degrees"):
        box_of(told)


def test_a_time_of_the_archive_that_cannot_be_read_is_none(archive: Path):
    facts = facts_of(archive, [name(0)])
    known = [time is not None for time in facts["from_us"].to_pylist()]
    assert known == [span(row) is not None for row in random_rows(0)]
    assert not all(known)
