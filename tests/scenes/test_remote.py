"""Scenes behind a server that stumbles, whose signatures expire, or that is gone: pixels, reasons and no secret."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import rasterio
import web as testweb
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from web import SECRET, Web

from urbancross.errors import TileError
from urbancross.scenes import rasters, remote
from urbancross.scenes.grids import Metres, Pixels
from urbancross.scenes.pixels import Scenes
from urbancross.scenes.remote import Access, Away, Patience
from urbancross.scenes.tiling import Reader, Tiling
from urbancross.storage import Place
from urbancross.tiles import decode

SIDE, SIZE = 64, 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of noise, larger than what is asked for first, and one band of it each in a file of its own."""
    made = tmp_path_factory.mktemp("scenes")
    pixels = np.random.default_rng(0).integers(1, 255, (3, SIZE, SIZE), dtype=np.uint8)
    profile = {"driver": "GTiff", "width": SIZE, "height": SIZE, "dtype": "uint8", "crs": "EPSG:32635"}
    profile |= {"transform": from_origin(500_000, 6_000_000, 10, 10), "tiled": True, "compress": "deflate"}
    profile |= {"blockxsize": 128, "blockysize": 128}
    with rasterio.open(made / "scene.tif", "w", count=3, **profile) as raster:
        raster.write(pixels)
        raster.build_overviews([2], Resampling.average)
    for number, name in enumerate(("B04", "B03", "B02")):
        with rasterio.open(made / f"{name}.tif", "w", count=1, **profile) as raster:
            raster.write(pixels[number], 1)
            raster.build_overviews([2], Resampling.average)
    with rasterio.open(made / "small.tif", "w", count=1, **(profile | {"width": SIZE // 2})) as raster:
        raster.write(pixels[0, :, : SIZE // 2], 1)
    (made / "no.tif").write_bytes(b"\0" * 100_000)
    return made


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    remote.web_of.cache_clear()
    with testweb.served(folder) as found:
        yield found


def tiles_of(source: str | Path, access: Access = remote.PLAIN, grid: Any = None) -> list[np.ndarray]:
    """All tiles of a scene, planned and read as `ingest` does."""
    tiling = Tiling(grid or Pixels(SIDE), access=access)
    reader = Reader(tiling)
    return [
        decode(reader.read({"source": str(source), **vars(cell), "colours": vars(colours)}))
        for cell, colours in tiling.plan(source, "s")
    ]


@pytest.mark.parametrize("grid", [Pixels(SIDE), Metres(SIDE, 10.0), Metres(SIDE, 25.0)])
def test_a_scene_behind_a_server_has_the_pixels_of_the_file(server: Web, folder: Path, grid: Any):
    here, there = tiles_of(folder / "scene.tif", grid=grid), tiles_of(f"{server.url}/files/scene.tif", grid=grid)
    assert len(here) == len(there) > 3
    assert all((a == b).all() for a, b in zip(here, there, strict=True))
    if isinstance(grid, Pixels):  # each block once, and the first bytes
        assert server.bytes_sent < 1.1 * (folder / "scene.tif").stat().st_size


@pytest.mark.parametrize("kind", ["503", "429", "500", "reset", "cut", "short"])
def test_a_server_that_stumbles_costs_nothing_but_time(server: Web, folder: Path, kind: str):
    server.fault(kind, times=1000, every=2)
    assert all(
        (a == b).all()
        for a, b in zip(tiles_of(folder / "scene.tif"), tiles_of(f"{server.url}/files/scene.tif"), strict=True)
    )
    assert server.count("GET /files/") >= 20


def test_bands_in_files_of_their_own_are_one_scene(server: Web, folder: Path):
    there = rasters.BETWEEN.join(f"{server.url}/files/{name}.tif" for name in ("B04", "B03", "B02"))
    here = rasters.BETWEEN.join(str(folder / f"{name}.tif") for name in ("B04", "B03", "B02"))
    for grid in (Pixels(SIDE), Metres(SIDE, 25.0)):
        whole = tiles_of(folder / "scene.tif", grid=grid)
        for source in (there, here):
            found = tiles_of(source, grid=grid)
            assert all((a == b).all() for a, b in zip(whole, found, strict=True))
    assert server.count("B03") > 0
    crossed = there.replace("B02", "small")
    with pytest.raises(TileError, match="its assets lie on other grids, 400 x 400 and 200 x 400 px; give --asset"):
        tiles_of(crossed)
    with pytest.raises(TileError, match="not a raster: 'http.*/files/no.tif' not recognized"):
        tiles_of(there.replace("B02", "no"))
    server.fault("404", "B02")
    remote.web_of.cache_clear()
    with pytest.raises(TileError, match=r"not found \(404\): http.*/B02.tif"):
        tiles_of(there)


def test_a_signature_that_expires_is_renewed_in_the_middle(server: Web, folder: Path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    href, access = f"{server.url}/files/scene.tif", Access(5, f"{server.url}/sign?href={{href}}")
    server.signed = SECRET
    tiling = Tiling(Pixels(SIDE), access=access)
    reader, found = Reader(tiling), []
    for number, (cell, colours) in enumerate(tiling.plan(href, "s")):
        if number in (9, 20):  # what was signed before is worth nothing now
            server.signed = f"{SECRET}-{number}"
        found.append(decode(reader.read({"source": href, **vars(cell), "colours": vars(colours)})))
    assert all((a == b).all() for a, b in zip(found, tiles_of(folder / "scene.tif"), strict=True))
    assert server.count("/sign?") == 3  # and otherwise kept
    assert SECRET not in "".join(str(record.__dict__) for record in caplog.records)
    assert SECRET not in "".join(capfd.readouterr())


def test_a_signature_is_not_used_once_it_is_about_to_expire(server: Web):
    server.signed, server.valid_s = SECRET, 1.0  # less than what is left to spare
    tiles_of(f"{server.url}/files/scene.tif", Access(5, f"{server.url}/sign?href={{href}}"))
    assert server.count("/sign?") == server.count("GET /files/")


def test_a_refusal_that_no_signature_mends_fails_at_once(server: Web):
    href = f"{server.url}/files/scene.tif"
    server.signed = SECRET
    with pytest.raises(TileError, match=r"^forbidden \(403\): http.*/scene.tif$"):
        tiles_of(href)
    server.fault("403", times=100)
    with pytest.raises(TileError, match=r"^forbidden \(403\): http.*/scene.tif$"):
        tiles_of(href, Access(5, f"{server.url}/sign?href={{href}}"))
    assert (server.count("GET /files/"), server.count("/sign?")) == (3, 2)  # once as it is; signed, and signed anew
    server.rules.clear()
    server.signed = None
    with pytest.raises(TileError, match=r"^not found \(404\): http.*/gone.tif$"):
        tiles_of(f"{server.url}/files/gone.tif")
    assert server.count("gone.tif") == 1
    for sign in ("/stac", "/files/no.tif", "/nowhere"):
        with pytest.raises(TileError, match=r"no signature \(.*scene.tif") as told:
            tiles_of(href, Access(5, f"{server.url}{sign}?href={{href}}"))
        assert SECRET not in str(told.value)


def test_a_dead_server_takes_one_tiles_patience_and_then_only_one_question_a_tile(
    server: Web, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    href, tiling = f"{server.url}/files/scene.tif", Tiling(Pixels(SIDE), access=Access(0.5))
    planned = [{"source": href, **vars(cell), "colours": vars(colours)} for cell, colours in tiling.plan(href, "s")]
    reader = Reader(tiling)
    server.fault("503", times=10**6)
    asked = []
    for row in planned[20:24]:
        before = server.count("GET")
        with pytest.raises(Away, match=r"service unavailable \(503\): .*scene.tif, asked \d+ times; urbancross retry"):
            reader.read(row)
        asked.append(server.count("GET") - before)
    assert asked[0] > 3
    assert asked[1:] == [1, 1, 1]
    server.rules.clear()
    here = tiles_of(folder / "scene.tif")
    assert (decode(reader.read(planned[20])) == here[20]).all()  # what failed is asked for anew, and nothing is kept
    server.shutdown()
    server.server_close()
    for connections in reader.scenes.web.session.adapters.values():
        connections.close()
    with pytest.raises(Away, match="no connection: http.*/scene.tif, asked"):
        reader.read(planned[35])


def test_a_scene_that_changes_while_it_is_read_is_told(server: Web, folder: Path, tmp_path: Path):
    (tmp_path / "scene.tif").write_bytes((folder / "scene.tif").read_bytes())
    server.folder = tmp_path
    href, tiling = f"{server.url}/files/scene.tif", Tiling(Pixels(SIDE))
    planned = tiling.plan(href, "s")
    reader, web = Reader(tiling), remote.web_of(remote.PLAIN)
    before = rasters.version_of(href, web, Patience(1))
    assert before is not None
    assert before.startswith(f"{(tmp_path / 'scene.tif').stat().st_size}-")
    with open(tmp_path / "scene.tif", "ab") as file:
        file.write(b"\0")
    cell, colours = planned[-1]
    row = {"source": href, **vars(cell), "colours": vars(colours)}
    with pytest.raises(TileError, match="the file changed while it was read; urbancross retry takes it"):
        reader.read(row)
    assert reader.read(row)
    assert rasters.version_of(href, web, Patience(1)) not in (None, before)


def test_a_server_without_ranges_or_marks_is_told_or_served(server: Web, folder: Path):
    with pytest.raises(TileError, match="the server does not give ranges of files; download them first: http.*/stac"):
        Scenes().web.ranges(f"{server.url}/stac", [(5, 9)], Patience(1))
    server.etags = False
    assert tiles_of(f"{server.url}/files/scene.tif")
    assert rasters.version_of(f"{server.url}/files/scene.tif", remote.web_of(remote.PLAIN), Patience(1)) is None
    with pytest.raises(TileError, match="not a raster"):
        tiles_of(f"{server.url}/files/no.tif")


@pytest.mark.parametrize("kind", ["slow down", "reset", "cut"])
def test_scenes_in_a_bucket_are_read_with_the_environments_credentials(
    bucket: Place, s3_proxy: Any, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    from urbancross.stores import s3

    s3._reader.cache_clear()
    remote.web_of.cache_clear()
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    client = boto3.client("s3")
    client.upload_file(str(folder / "scene.tif"), bucket.bucket, "a b/scene.tif")
    s3_proxy.fault(kind, "GET", "scene.tif", times=3, after=1)
    href = f"{bucket}/a b/scene.tif"
    here, there = tiles_of(folder / "scene.tif"), tiles_of(href)
    assert all((a == b).all() for a, b in zip(here, there, strict=True))
    remote.web_of.cache_clear()
    s3_proxy.fault("denied", "GET", "scene.tif", times=100)
    with pytest.raises(TileError, match=r"^the credentials in the environment were refused \(AccessDenied\): s3:"):
        tiles_of(href)
    with pytest.raises(TileError, match="NoSuchKey: s3:.*/gone.tif"):
        tiles_of(f"{bucket}/gone.tif")
    s3._reader.cache_clear()
