"""`ingest` of a STAC API over Ray: the tiles of the files behind it, whatever servers do, and no secret anywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import web as testweb
from rasterio.transform import from_origin
from web import SECRET, Web

from urbancross import cli, runs, storage
from urbancross.errors import ConfigError
from urbancross.scenes import remote

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SIDE = 64
TOLD = {"domain": "north", "tile_px": SIDE, "valid_share": 0, "test_share": 0, "workers": 1}


def run(verb: str, **settings: Any) -> str:
    return str(cli.call(verb, cli.VERBS[verb].kind(**settings)))


def rows_of(archive: Path, table: str = "tiles") -> list[dict[str, Any]]:
    shards = (storage.read_shard(archive / table / name) for name in storage.shards(archive / table))
    return [row for shard in shards for row in shard.to_pylist()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, each larger than what is asked for first, of 25 tiles."""
    made = tmp_path_factory.mktemp("scenes")
    profile = {"driver": "GTiff", "count": 3, "width": 320, "height": 320, "dtype": "uint8", "crs": "EPSG:32635"}
    profile |= {"tiled": True, "blockxsize": 64, "blockysize": 64}
    for number, name in enumerate("ab"):
        pixels = np.random.default_rng(number).integers(1, 255, (3, 320, 320), dtype=np.uint8)
        place = from_origin(500_000 + 5000 * number, 6_000_000, 10, 10)
        with rasterio.open(made / f"{name}.tif", "w", transform=place, **profile) as raster:
            raster.write(pixels)
    return made


@pytest.fixture
def api(folder: Path) -> Iterator[Web]:
    remote.web_of.cache_clear()
    with testweb.served(folder) as server:
        for day, name in enumerate("ab", start=1):
            asset = {"href": f"{server.url}/files/{name}.tif", "type": "image/tiff; application=geotiff"}
            found = {"type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "north", "links": []}
            found |= {"geometry": {"type": "Point", "coordinates": [27, 54]}, "bbox": [27, 54, 27, 54]}
            found |= {"properties": {"datetime": f"2024-06-0{day}T10:00:00Z"}, "assets": {"visual": asset}}
            server.items.append(found)
        yield server


def test_an_api_of_signed_scenes_gives_the_tiles_of_their_files_and_keeps_no_secret(
    api: Web, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    run("ingest", source=str(folder), archive=str(tmp_path / "here"), **TOLD)
    api.signed, api.valid_s = SECRET, 30.0  # less than what is left to spare: every URL is signed anew
    api.fault("503", times=10**6, every=4)
    api.fault("cut", times=10**6, every=7)
    told = {"source": f"{api.url}/stac", "sign_url": f"{api.url}/sign?href={{href}}", "retry_seconds": 30} | TOLD
    line = run("ingest", archive=str(tmp_path / "there"), **told)
    assert line == "read 50 = written 50 + done before 0 + failed 0"
    here, there = rows_of(tmp_path / "here"), rows_of(tmp_path / "there")
    assert [row["tile_id"] for row in there] == [f"north/{row['tile_id']}" for row in here]
    assert {row["datetime"] for row in there} == {"2024-06-01T10:00:00Z", "2024-06-02T10:00:00Z"}
    for one, other in zip(here, there, strict=True):
        differs = {key for key in one if one[key] != other[key]}
        assert differs == {"tile_id", "datetime"}
    assert run("ingest", archive=str(tmp_path / "there"), **told).startswith("read 50 = written 0 + done before 50")
    files = [file for file in (tmp_path / "there").rglob("*") if file.is_file()]
    assert len(files) > 5
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    assert SECRET not in "".join(capfd.readouterr())
    with pytest.raises(ConfigError, match="was made with asset="):
        run("ingest", archive=str(tmp_path / "there"), asset="visual", **told)


def test_a_server_that_dies_leaves_failed_tiles_with_reasons_and_retry_gets_them(
    api: Web, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    archive = str(tmp_path / "a")
    api.fault("503", "b.tif", times=10**6, after=1)  # what is planned by is the last that is answered
    told = {"source": f"{api.url}/stac", "archive": archive, "retry_seconds": 1, "stall_minutes": 1} | TOLD
    line = run("ingest", **told)
    failures = [row["failure"] for row in rows_of(tmp_path / "a")]
    failed = runs.count_failures(failures)["failed"]
    assert line == f"read 50 = written {50 - failed} + done before 0 + failed {failed}"
    assert failures[:25] == [None] * 25
    assert 20 <= failed <= 25
    assert all(f"failed:service unavailable (503): {api.url}/files/b.tif, asked" in why for why in failures[25:] if why)
    assert f"tiles: failed {failed} × service unavailable\n" in capfd.readouterr().err
    api.rules.clear()
    assert run("retry", archive=archive, table="tiles") == (
        f"read 50 = written {failed} + done before {50 - failed} + failed 0"
    )
    run("ingest", source=str(folder), archive=str(tmp_path / "here"), **TOLD)
    pixels = [row["image"] for row in rows_of(tmp_path / "here")]
    assert [row["image"] for row in rows_of(tmp_path / "a")] == pixels
