"""A map in the archive: read once, killed half-way and begun anew, told by verify, explain and retry."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from urbancross import cli, storage
from urbancross.distributed import mapping
from urbancross.errors import ConfigError, SchemaError
from urbancross.maps import table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

STEP = 0.01  # side of a tile in degrees
LICENCE = "ODbL 1.0, (c) OpenStreetMap contributors"


def run(verb: str, **settings: Any) -> str:
    kind = cli.VERBS[verb].kind
    return str(cli.call(verb, kind(**({"workers": 1} if "workers" in kind.model_fields else {}) | settings)))


def write_map(path: Path, side: int = 60) -> Path:
    """A field of `side` by `side` ponds and woods, one in every tile and more beside them."""
    lines = ['<osm version="0.6">']
    ways, number = [], 0
    for row in range(side):
        for col in range(side):
            refs = []
            for x, y in ((0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6)):
                number += 1
                refs.append(number)
                lines.append(f'<node id="{number}" version="1" lon="{(col + x) * STEP}" lat="{(row + y) * STEP}"/>')
            tag = '<tag k="natural" v="water"/>' if (row + col) % 2 else '<tag k="natural" v="wood"/>'
            inner = "".join(f'<nd ref="{ref}"/>' for ref in [*refs, refs[0]])
            ways.append(f'<way id="{row * side + col + 1}" version="1">{inner}{tag}</way>')
    path.write_text("\n".join([*lines, *ways, "</osm>"]))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A set of twelve tiles, one of them without bounds and one across the antimeridian, and two maps."""
    home = tmp_path_factory.mktemp("maps")
    (home / "set").mkdir()
    entries: list[dict[str, Any]] = []
    for number in range(12):
        name = f"{number:02d}.png"
        Image.new("RGB", (8, 8), (20 * number, 90, 60)).save(home / "set" / name)
        bounds = [number * STEP, 0.0, (number + 1) * STEP, STEP]
        entries.append({"image": name, "captions": ["ground"], "split": "train", "bounds": bounds})
    entries[3]["bounds"] = None
    entries[7]["bounds"] = [179.99, -17, -179.99, -16.98]
    (home / "set" / "captions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    write_map(home / "map.osm")
    return home


@pytest.fixture
def archive(home: Path, tmp_path: Path) -> Path:
    run("ingest", source=str(home / "set"), archive=str(tmp_path / "archive"), domain="here", shard_tiles=5)
    return tmp_path / "archive"


def the_map(archive: Path) -> str:
    (name,) = storage.tables(archive, "map")
    return name


def rows(archive: Path) -> list[dict[str, Any]]:
    found = [storage.read_shard(archive / "geotags" / name) for name in storage.shards(archive / "geotags")]
    return pa.concat_tables(found).to_pylist()


def test_a_map_is_read_once_and_tags_say_its_licence(home, archive, monkeypatch):
    wanted = "read 12 = written 11 + done before 0 + skipped 1 + failed 0"
    assert run("geotag", archive=str(archive), osm=str(home / "map.osm")) == wanted
    name = the_map(archive)
    assert name == f"map@{storage.digest(home / 'map.osm')}"
    assert sum((table.parts(archive / name) or {}).values()) == 3600
    found = rows(archive)
    assert found[0]["center_tags"] == ["natural=wood"]
    assert found[0]["center_counts"] == [1]
    assert found[0]["nearby_tags"] == ["natural=water"]
    assert found[3]["failure"] == "skipped:no bounds"
    assert {found[3][column] for column in found[3] if column not in ("tile_id", "failure")} == {None}
    assert (found[7]["center_tags"], found[7]["nearby_tags"]) == ([], [])
    shards = storage.shards(archive / "geotags")
    for place in (archive / name / "part-00000.parquet", archive / "geotags" / shards[0]):
        assert storage.made_by(storage.read_schema(place))["notes"]["licence"] == LICENCE

    monkeypatch.setattr(mapping.osm, "read", None)  # a second run has no need of the reader
    (archive / "geotags" / shards[1]).unlink()
    line = run("geotag", archive=str(archive), osm=str(home / "map.osm"))
    assert line.startswith("read 12 = written 5 + done before 7")
    assert rows(archive) == found
    with pytest.raises(ConfigError, match=r"max_tags=12, now max_tags=3"):
        run("geotag", archive=str(archive), osm=str(home / "map.osm"), max_tags=3)


def test_a_map_that_was_killed_half_way_is_begun_anew(home, archive, tmp_path):
    """Kill the run when the second part is there under its name: half a map never passes for a whole one."""
    program = (
        "import sys; from urbancross import cli; from urbancross.maps import order; order.PART_BYTES = 60_000\n"
        "cli.main('geotag', sys.argv[1:])"
    )
    (tmp_path / "once").mkdir()
    told = {"URBANCROSS_FAILPOINTS": "shard.named:2=kill", "URBANCROSS_FAILPOINTS_ONCE": str(tmp_path / "once")}
    flags = ["--archive", str(archive), "--osm", str(home / "map.osm"), "--workers", "1"]
    ended = subprocess.run([sys.executable, "-c", program, *flags], env=os.environ | told, check=False, timeout=120)
    assert ended.returncode == -9
    name = the_map(archive)
    assert len(storage.shards(archive / name)) == 2
    assert table.parts(archive / name) is None
    assert not storage.shards(archive / "geotags")
    with pytest.raises(SchemaError, match="not as they should be"):
        run("verify", archive=str(archive), table=name)

    line = run("geotag", archive=str(archive), osm=str(home / "map.osm"))
    assert line == "read 12 = written 11 + done before 0 + skipped 1 + failed 0"
    assert table.parts(archive / name) == {"part-00000.parquet": 3600}  # at the usual size of parts
    assert storage.shards(archive / name) == ["part-00000.parquet"]


@pytest.mark.slow
def test_verify_explain_and_retry_know_that_a_map_has_no_tiles(home, archive, capsys):
    run("geotag", archive=str(archive), osm=str(home / "map.osm"))
    name = the_map(archive)
    run("verify", archive=str(archive))
    assert f"{name}: 1 parts, 3,600 features" in capsys.readouterr().out
    run("explain", archive=str(archive), tile_id="00.png", json=True)
    told = json.loads(capsys.readouterr().out)["history"]
    assert [entry["table"] for entry in told] == ["plan", "tiles", "captions@given", "geotags"]
    with pytest.raises(ConfigError, match="holds features, not tiles"):
        run("retry", archive=str(archive), table=name)
    (archive / name / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(SchemaError, match="not as they should be"):
        run("verify", archive=str(archive), table=name)


def test_features_of_another_kind_and_what_stops_before_any_work(home, archive, tmp_path):
    pond = {"type": "Polygon", "coordinates": [[[0, 0], [0.01, 0], [0.01, 0.01], [0, 0.01], [0, 0]]]}
    features = [{"type": "Feature", "properties": {"natural": "water"}, "geometry": pond}]
    path = tmp_path / "ponds.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    for wrong in ({}, {"osm": str(home / "map.osm"), "features": str(path)}):
        with pytest.raises(ConfigError, match="give one map: --osm"):
            run("geotag", archive=str(archive), **wrong)
    unseen = tmp_path / "unseen.geojson"
    unseen.write_text(path.read_text().replace("natural", "name"))
    with pytest.raises(ConfigError, match="nothing in it can be seen from above"):
        run("geotag", archive=str(archive), features=str(unseen))
    assert [name for name in storage.tables(archive, "map") if storage.shards(archive / name)] == []

    run("geotag", archive=str(archive), features=str(path), licence="CC0")
    assert rows(archive)[0]["center_tags"] == ["natural=water"]
    shard = archive / "geotags" / "part-00000.parquet"
    assert storage.made_by(storage.read_schema(shard))["notes"]["licence"] == "CC0"
