"""Bad input becomes a row with its reason, or a stop with one line; nothing is lost either way."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from urbancross import cli, storage, tiles

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
BANDS = np.random.default_rng(1).integers(0, 256, (5, 16, 16), dtype=np.uint8)
NAMELESS = os.fsdecode(b"caf\xe9")  # Latin-1, as old archives have it


def run(verb: str, **settings: Any) -> str:
    return str(cli.call(verb, cli.VERBS[verb].kind(**{"workers": 1} | settings)))


def rows(table: Path) -> dict[str, dict[str, Any]]:
    read = (storage.read_shard(table / name).to_pylist() for name in storage.shards(table))
    return {row["tile_id"]: row for shard in read for row in shard}


def contents(table: Path) -> dict[str, bytes]:
    return {name: (table / name).read_bytes() for name in storage.shards(table)}


def stop(capsys: pytest.CaptureFixture[str], verb: str, *arguments: str) -> tuple[int, str]:
    """A verb that must not get through: its exit code, and the one line that it says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(None, [verb, *arguments])
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1, told.err
    return ended.value.code, told.err


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scene(file: Path, pixels: np.ndarray, crs: str = "EPSG:4326") -> bytes:
    bands, height, width = pixels.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": bands, "dtype": pixels.dtype, "crs": crs}
    with rasterio.open(file, "w", transform=from_origin(24.0, 60.0, 0.001, 0.001), **profile) as raster:
        raster.write(pixels)
    return file.read_bytes()


def png_that_says_it_is_large(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_set(folder: Path, *lines: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_images(folder: Path, count: int) -> Path:
    """A set of noise without captions, each image another."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.roll(NOISE, number)).save(folder / f"{number}.png")
    return write_set(folder, *({"image": f"{number}.png"} for number in range(count)))


JPEG, PNG = (encoded(Image.fromarray(NOISE), kind) for kind in ("JPEG", "PNG"))
RED = np.zeros((16, 16, 4), dtype=np.uint8) + np.array([0, 255, 255, 0], dtype=np.uint8)  # CMYK
DEEP = np.array([[0, 255, 256, 0x1234, 0xFFFF]] * 2, dtype=np.uint16)
SHALLOW = np.repeat(np.array([[0, 0, 1, 0x12, 0xFF]] * 2, dtype=np.uint8)[..., None], 3, axis=2)

BAD: dict[str, tuple[bytes | Callable[[Path], bytes], str]] = {
    "truncated.jpg": (JPEG[: len(JPEG) * 2 // 3], "corrupt image: Truncated File Read"),
    "nothing.jpg": (b"", "empty file"),
    "text.jpg": (b"these are words", "not an image"),
    "wide.png": (encoded(Image.new("1", (20_000, 1)), "PNG"), "20000 x 1 px, at most 8192 a side wanted"),
    "bomb.png": (png_that_says_it_is_large(30_000), "too large: Image size (900000000 pixels) exceeds limit"),
    "bands.tif": (
        lambda file: scene(file, BANDS),
        "a TIFF that is broken or of other bands than RGB; convert with gdal_translate",
    ),
    "floats.tif": (lambda file: scene(file, np.ones((1, 4, 4), np.float32)), "pixels of 32 bits or with a sign"),
    "signed.tif": (lambda file: scene(file, np.ones((1, 4, 4), np.int16)), "pixels of 32 bits or with a sign"),
    "x" * 300 + ".jpg": (b"", "cannot be read: File name too long"),
    "absent.jpg": (b"", "no such file"),
}
USABLE: dict[str, tuple[bytes, np.ndarray]] = {
    "png.jpg": (PNG, NOISE),
    "cmyk.jpg": (encoded(Image.fromarray(RED, "CMYK"), "JPEG"), np.full((16, 16, 3), (255, 0, 0), np.uint8)),
    "deep.png": (encoded(Image.fromarray(DEEP), "PNG"), SHALLOW),
    "deep.tif": (encoded(Image.fromarray(DEEP), "TIFF"), SHALLOW),
    "pixel.png": (encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), np.array([[(1, 2, 3)]], np.uint8)),
    "last.png": (PNG, NOISE),
}
TOLD = {"captions": ["a place"], "bounds": [24.0, 60.0, 24.001, 60.001], "gsd_m": 0.5, "crs": "EPSG:4326"}
TOLD |= {"datetime": "2024-06-01T10:00:00Z"}
OSM = (
    '<osm version="0.6"><node id="1" version="1" lon="24.0005" lat="60.0005"><tag k="amenity" v="school"/></node></osm>'
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All bad and usable images in shards of 8: of the first shard's tiles nothing is known beside their images."""
    home = tmp_path_factory.mktemp("bad")
    (home / "set").mkdir()
    for name, (data, _) in (BAD | USABLE).items():
        if name != "absent.jpg" and len(name) < 255:
            (home / "set" / name).write_bytes(data(home / "set" / name) if callable(data) else data)
    bad, usable = list(BAD), list(USABLE)
    silent = [*bad[:6], *usable[:2]]
    told = [{"image": name, **TOLD} for name in [*bad[6:], *usable[2:]]]
    write_set(home / "set", *({"image": name} for name in silent), *told)
    (home / "map.osm").write_text(OSM)
    line = run("ingest", source=str(home / "set"), archive=str(home / "archive"), domain="d", shard_tiles=8)
    assert line == "read 16 = written 6 + done before 0 + failed 10"
    line = run("segment", archive=str(home / "archive"), engine="grid", max_area=1.0)
    assert line == "read 16 = written 4 + done before 0 + skipped 12 + failed 0"
    line = run("geotag", archive=str(home / "archive"), osm=str(home / "map.osm"))
    assert line == "read 16 = written 4 + done before 0 + skipped 12 + failed 0"
    line = run("caption", archive=str(home / "archive"))
    assert line == "read 16 = written 4 + done before 0 + skipped 12 + failed 0"
    return home / "archive"


@pytest.mark.parametrize("name", BAD, ids=lambda name: name[-20:])
def test_a_bad_image_fails_with_its_reason_and_later_stages_skip_it(archive: Path, name: str):
    row = rows(archive / "tiles")[name]
    assert row["failure"].startswith(f"failed:{BAD[name][1]}")
    assert row["image"] is None
    for table in ("segments@grid", "geotags"):
        assert rows(archive / table)[name]["failure"] == f"skipped:no input ({row['failure']})"
    assert rows(archive / "captions@template")[name]["failure"].startswith("skipped:no input (skipped:no input (failed")


@pytest.mark.parametrize("name", USABLE)
def test_an_odd_image_becomes_rgb_and_goes_through_every_stage(archive: Path, name: str):
    row = rows(archive / "tiles")[name]
    assert row["failure"] is None
    stored = Image.open(io.BytesIO(row["image"]))
    assert stored.mode == "RGB"
    np.testing.assert_allclose(np.asarray(stored).astype(int), USABLE[name][1], atol=6 if name == "cmyk.jpg" else 0)
    segments = rows(archive / "segments@grid")[name]
    one_colour = name in ("pixel.png", "cmyk.jpg")
    assert segments["failure"] == ("skipped:one colour" if one_colour else None)
    assert len(segments["segments"]) == (0 if one_colour else 4)


def test_columns_without_a_value_in_the_first_shard_keep_their_types(archive: Path):
    first, last = (storage.read_shard(archive / "tiles" / name) for name in storage.shards(archive / "tiles"))
    for column in ("bounds", "geometry", "crs", "gsd_m", "datetime"):
        assert first[column].null_count == first.num_rows, column
        assert last[column].null_count == 0, column
    assert storage.read_shard(archive / "captions@given" / "part-00000.parquet")["captions"].null_count == 8
    assert rows(archive / "captions@given")["last.png"]["captions"] == ["a place"]
    assert rows(archive / "geotags")["png.jpg"]["failure"] == "skipped:no bounds"
    assert rows(archive / "geotags")["last.png"]["center_tags"] == ["amenity=school"]
    assert "school" in rows(archive / "captions@template")["last.png"]["captions"][0]
    for table in ("plan", "tiles", "captions@given", "segments@grid", "geotags", "captions@template"):
        one, two = (storage.read_schema(archive / table / name) for name in storage.shards(archive / table))
        assert one.equals(two, check_metadata=True), table


def test_a_shard_without_tiles_goes_through_every_stage_and_the_counts_add_up(archive: Path, tmp_path: Path):
    home, name = tmp_path / "archive", "part-00002.parquet"
    shutil.copytree(archive, home)
    schema = storage.read_schema(home / "tiles" / "part-00000.parquet")
    assert storage.publish_shard(home / "tiles" / name, schema.empty_table())
    (home / "segments@grid" / "part-00001.parquet").unlink()
    line = run("segment", archive=str(home), engine="grid", max_area=1.0)
    assert line == "read 16 = written 3 + done before 8 + skipped 5 + failed 0"
    line = run("geotag", archive=str(home), osm=str(archive.parent / "map.osm"))
    assert line == "read 16 = written 0 + done before 16 + failed 0"
    for table in ("segments@grid", "geotags"):
        assert storage.read_shard(home / table / name).num_rows == 0
        schemas = {str(storage.read_schema(home / table / shard)) for shard in storage.shards(home / table)}
        assert len(schemas) == 1, table
    assert contents(home / "segments@grid").items() >= contents(archive / "segments@grid").items()


def test_images_that_vanish_or_change_before_they_are_read_fail_and_those_already_read_stay(tmp_path: Path):
    source, home = write_images(tmp_path / "set", 6), tmp_path / "archive"
    settings = {"source": str(source), "archive": str(home), "domain": "d", "shard_tiles": 2}
    run("ingest", **settings)
    stored = contents(home / "tiles")
    (home / "tiles" / "part-00001.parquet").unlink()  # as if the ingest had been stopped before it: tiles 2 and 3
    Image.fromarray(NOISE[:8]).save(source / "0.png")
    (source / "1.png").unlink()
    Image.fromarray(NOISE[:8]).save(source / "2.png")
    (source / "3.png").unlink()
    assert run("ingest", **settings) == "read 6 = written 0 + done before 4 + failed 2"
    found = rows(home / "tiles")
    changed = "failed:the file changed since it was planned; urbancross retry takes it as it is now"
    assert (found["2.png"]["failure"], found["2.png"]["image"]) == (changed, None)
    assert (found["3.png"]["failure"], found["3.png"]["image"]) == ("failed:no such file", None)
    assert {**contents(home / "tiles"), "part-00001.parquet": b""} == {**stored, "part-00001.parquet": b""}
    line = run("segment", archive=str(home), engine="grid", max_area=1.0)
    assert line == "read 6 = written 4 + done before 0 + skipped 2 + failed 0"
    assert rows(home / "segments@grid")["3.png"]["failure"] == "skipped:no input (failed:no such file)"


def test_of_a_folder_of_scenes_the_bad_ones_fail_and_the_first_three_of_five_bands_are_read(tmp_path: Path):
    folder, home = tmp_path / "scenes", tmp_path / "archive"
    folder.mkdir()
    scene(folder / "five.tif", BANDS)
    shutil.copy(folder / "five.tif", folder / f"{NAMELESS}.tif")
    whole = scene(folder / "cut.tif", np.stack([NOISE[..., 0]] * 3))
    (folder / "cut.tif").write_bytes(whole[:-400])  # the header is whole, the last pixels are not
    named = scene(folder / "named.tif", BANDS, 'LOCAL_CS["XXXX",UNIT["metre",1]]')
    (folder / "named.tif").write_bytes(named.replace(b"XXXX", b"\xe9\xe9\xe9\xe9"))
    line = run("ingest", source=str(folder), archive=str(home), domain="d", tile_px=16)
    assert line == "read 4 = written 1 + done before 0 + failed 3"
    found = rows(home / "tiles")
    np.testing.assert_array_equal(tiles.decode(found["five/00000-00000"]["image"]), np.moveaxis(BANDS[:3], 0, -1))
    assert found["caf\\udce9"]["failure"] == "failed:its name is not UTF-8; rename the file"
    assert found["cut/00000-00000"]["failure"].startswith("failed:cannot be read: ")
    assert found["named"]["failure"].startswith(
        "failed:its reference system has a name that is not UTF-8; give it anew"
    )
    line = run("segment", archive=str(home), engine="grid", max_area=1.0)
    assert line == "read 4 = written 1 + done before 0 + skipped 3 + failed 0"


def test_names_that_are_not_utf8_stop_with_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good, archive = write_images(tmp_path / "good", 1), str(tmp_path / "archive")
    odd = write_set(tmp_path / "odd", {"image": "a.png"}, {"image": f"{NAMELESS}.png"})  # escaped, as JSON can
    for name in ("a", NAMELESS):
        (odd / f"{name}.png").write_bytes(PNG)
    shutil.copytree(good, tmp_path / NAMELESS)
    (tmp_path / "scenes").mkdir()
    scene(tmp_path / "scenes" / "a.tif", BANDS)
    (tmp_path / "scenes" / "a.tif").rename(tmp_path / "scenes" / f"{NAMELESS}.tif")
    before = sorted(tmp_path.rglob("*"))
    for arguments, wanted in [
        ((odd, archive, "d"), r"line 2: image 'caf\udce9.png' is not a name in UTF-8; rename the file"),
        ((tmp_path / NAMELESS, archive, "d"), r"caf\udce9: the path is not UTF-8; rename it"),
        ((good, f"{archive}/{NAMELESS}", "d"), r"caf\udce9: the path is not UTF-8; rename it"),
        ((good, archive, NAMELESS), r"--domain caf\udce9: not UTF-8; give another name"),
        ((tmp_path / "scenes", archive, "d"), r"no scene can be used, caf\udce9.tif: its name is not UTF-8; rename"),
    ]:
        source, place, domain = map(str, arguments)
        code, line = stop(capsys, "ingest", "--source", source, "--archive", place, "--domain", domain)
        assert (code, wanted in line) == (2, True), line
    assert sorted(tmp_path.rglob("*")) == before


def test_tiles_that_would_have_one_id_stop_with_the_names_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    twice = write_set(tmp_path / "set", {"image": "a.png"}, {"image": "b.png"}, {"image": "./a.png"})
    (twice / "a.png").write_bytes(PNG)
    (tmp_path / "scenes").mkdir()
    for name in ("s.tif", "s.TIFF"):
        scene(tmp_path / "scenes" / name, BANDS)
    for source, wanted in [
        (twice, "a.png stands in entries 1 and 3; give one entry per image, with all its captions"),
        (tmp_path / "scenes", "scenes/s.tif would both be s/00000-00000; rename one of them"),
    ]:
        told = ("--source", str(source), "--archive", str(tmp_path / "archive"), "--domain", "d", "--tile-px", "16")
        code, line = stop(capsys, "ingest", *told)
        assert (code, wanted in line) == (2, True), line
        assert not (tmp_path / "archive").exists()
    assert "scenes/s.TIFF and " in line


@pytest.mark.parametrize("line", ['{"image": "a.png", "n": ' + "9" * 5000 + "}", "[" * 100_000])
def test_json_that_python_cannot_hold_stops_with_the_number_of_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
):
    write_set(tmp_path / "set", {"image": "a.png"})
    with open(tmp_path / "set" / "captions.jsonl", "a") as file:
        file.write(line)
    told = ("--source", str(tmp_path / "set"), "--archive", str(tmp_path / "archive"), "--domain", "d")
    code, said = stop(capsys, "ingest", *told)
    assert (code, "captions.jsonl line 2: not JSON (" in said) == (2, True), said
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize("blocked", ["archive", "archive/plan", "archive/tiles"])
def test_a_place_that_nothing_can_be_written_to_stops_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], blocked: str
):
    """A file stands where a folder is wanted: no user can write there, root included."""
    source, home = write_images(tmp_path / "set", 1), tmp_path / "archive"
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("in the way")
    code, line = stop(capsys, "ingest", "--source", str(source), "--archive", str(home), "--domain", "d")
    assert code == 1
    assert re.search(rf"urbancross ingest: cannot (read|write) {tmp_path / blocked}\S*: .*; \w+", line), line
    assert (tmp_path / blocked).read_text() == "in the way"


def test_a_file_system_that_takes_no_folder_stops_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_images(tmp_path / "set", 1)
    code, line = stop(capsys, "ingest", "--source", str(source), "--archive", "/proc/archive", "--domain", "d")
    assert code == 1
    assert "cannot write /proc/archive/plan/" in line


@pytest.mark.slow
def test_a_full_disk_stops_with_one_line_and_the_same_command_ends_with_the_bytes_of_an_unbroken_run(tmp_path: Path):
    source, whole, broken = write_images(tmp_path / "set", 4), tmp_path / "whole", tmp_path / "broken"
    settings = {"source": str(source), "domain": "d", "shard_tiles": 2}
    run("ingest", archive=str(whole), **settings)
    told = ["--source", str(source), "--archive", str(broken), "--domain", "d", "--shard-tiles", "2", "--workers", "1"]
    for table in ("plan", "tiles"):  # first the driver finds no space for its second shard, then a worker
        ran = subprocess.run(
            [sys.executable, "-m", "urbancross.cli", "ingest", *told],
            env={**os.environ, "URBANCROSS_FAILPOINTS": "shard.halfway:2=full"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (ran.returncode, ran.stdout) == (1, ""), ran.stderr
        *progress, line = ran.stderr.splitlines()
        assert all(text.startswith("tiles of broken: ") for text in progress), ran.stderr
        (done,) = storage.shards(broken / table)  # Ray may begin with either
        (other,) = {"part-00000.parquet", "part-00001.parquet"} - {done}
        assert line.startswith(f"urbancross ingest: cannot write {broken / table / other}: ")
        assert line.endswith("No space left on device; free some space, and run the same command again")
        assert not list(broken.rglob("*.tmp"))
    assert run("ingest", archive=str(broken), **settings) == "read 4 = written 2 + done before 2 + failed 0"
    for name in ("plan", "tiles"):
        assert contents(broken / name) == contents(whole / name)
