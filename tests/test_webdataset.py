"""Tars as sources: samples by key, captions and places beside the image, and what a tar may do wrong."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from urbancross import schemas, sources, tiles, webdataset
from urbancross.errors import ConfigError, TileError
from urbancross.scenes.tiling import Reader, Tiling
from urbancross.splits import Shares


def picture(colour: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), colour, np.uint8)).save(out, kind)
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str | dict] | list[tuple[str, Any]], **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **how) as tar:
        for name, value in members.items() if isinstance(members, dict) else members:
            if isinstance(value, tarfile.TarInfo):
                tar.addfile(value)
                continue
            data = (
                value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
            )
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def plan(source: Path | str) -> list[dict[str, Any]]:
    return sources.plan(str(source), None, "north", Tiling(), Shares(None, 0, 0))


def failure_of(tmp_path: Path, members: Any, key: str = "bad") -> str:
    """Why a sample cannot be used, beside one that can."""
    good = [("good.png", picture(1))]
    rows = plan(write_tar(tmp_path / "set.tar", [*(members.items() if isinstance(members, dict) else members), *good]))
    told = {row["tile_id"]: row["failure"] for row in rows}
    assert told.pop("set/good") is None
    assert list(told) == [f"set/{key}"]
    return told[f"set/{key}"] or ""


def test_members_that_share_a_key_are_a_sample_and_its_image_is_read_where_it_lies(tmp_path: Path):
    place = {"caption": "a lake", "bounds": [24, 60, 25, 61], "datetime": "2024-06-01", "split": "val", "url": "x"}
    members = {
        "a/0001.jpg": picture(10, "JPEG"), "a/0001.seg.png": picture(99), "a/0002.txt": "one boat\n\n two boats \n",
        "a/0001.json": {"captions": ["a quay", "a lake"], "text": "a pier"}, "a/0002.WEBP": picture(20, "WEBP"),
        "b/0001.png": picture(30), "b/0001.json": place, "b/0001.txt": "water", "README": "no key", "b/._0001.png": "x",
        "c/long" + "g" * 200 + ".png": picture(40),
    }  # fmt: skip
    rows = plan(write_tar(tmp_path / "set-00.tar", members, format=tarfile.PAX_FORMAT))
    assert [row["tile_id"] for row in rows] == [
        "set-00/a/0001", "set-00/a/0002", "set-00/b/0001", "set-00/c/long" + "g" * 200,
    ]  # fmt: skip
    assert [row["captions"] for row in rows] == [
        ["a quay", "a lake", "a pier"], ["one boat", "two boats"], ["water", "a lake"], None,
    ]  # fmt: skip
    assert (rows[2]["bounds"], rows[2]["datetime"], rows[2]["split"]) == ([24, 60, 25, 61], "2024-06-01", "valid")
    assert pa.Table.from_pylist(rows, schema=schemas.PLAN)["member"].null_count == 0
    reader = Reader(Tiling())
    assert [reader.read(row) for row in rows[:3]] == [members["a/0001.jpg"], members["a/0002.WEBP"], picture(30)]
    assert reader.read(rows[3]) == picture(40)


def test_a_folder_a_tar_and_a_pattern_are_sources_and_scenes_beside_their_tars_stay_scenes(tmp_path: Path):
    for number in range(8, 12):
        write_tar(tmp_path / "sets" / f"set-{number:03d}.tar", {"1.png": picture(number)})
    assert len(plan(tmp_path / "sets")) == 4
    assert [row["tile_id"] for row in plan(tmp_path / "sets" / "set-010.tar")] == ["set-010/1"]
    found = plan(tmp_path / "sets" / "set-{009..011}.tar")
    assert [row["tile_id"] for row in found] == ["set-009/1", "set-010/1", "set-011/1"]
    with pytest.raises(ConfigError, match=r"no file .*set-012.tar \(2 of 4 are absent\); check the path or its range"):
        plan(tmp_path / "sets" / "set-{010..013}.tar")
    with pytest.raises(ConfigError, match=r"\{3..1\} is no range of tars"):
        plan(tmp_path / "sets" / "set-{3..1}.tar")
    (tmp_path / "sets" / "scene.TIF").write_bytes(b"")
    assert webdataset.tars("", tmp_path / "sets") is None


def test_numbers_of_a_pattern_are_as_wide_as_its_first_end_says():
    assert webdataset.expanded("s{8..10}.tar") == ["s8.tar", "s9.tar", "s10.tar"]
    assert webdataset.expanded("{00..01}/s{098..100}") == [
        *("00/s098", "00/s099", "00/s100"), *("01/s098", "01/s099", "01/s100"),
    ]  # fmt: skip


def test_tars_of_one_name_are_refused_as_their_tiles_would_be(tmp_path: Path):
    for part in "01":
        write_tar(tmp_path / part / "set.tar", {"1.png": picture(1)})
    with pytest.raises(ConfigError, match="would both be set/1; rename one of them"):
        plan(tmp_path / "{0..1}" / "set.tar")


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({"bad.txt": "alone"}, "one image wanted, found none of jpg, jpeg, png, webp"),
        ({"bad.png": picture(1), "bad.jpg": picture(2, "JPEG")}, "one image wanted, found bad.jpg and bad.png"),
        ([("bad.png", picture(1)), ("bad.png", picture(2))], "bad.png stands in its tar twice"),
        ({"bad.png": picture(1), "bad.json": "{"}, "bad.json is not JSON"),
        ({"bad.png": picture(1), "bad.json": "[1]"}, "bad.json is no JSON object"),
        (
            {"bad.png": picture(1), "bad.json": {"bounds": [1, 2]}},
            "bad.json: bounds must be [west, south, east, north]",
        ),
        ({"bad.png": picture(1), "bad.json": {"caption": 7}}, "bad.json: captions must be a list of strings"),
        ({"bad.png": picture(1), "bad.json": {"split": "tset"}}, "bad.json: split 'tset' is none of"),
        ({"bad.png": picture(1), "bad.txt": b"\xff\xfe\xfa"}, "bad.txt is not UTF-8"),
        ({"bad.png": picture(1), "bad.txt": "x" * (1 << 21)}, "bad.txt has 2,097,152 bytes, at most 1,048,576"),
    ],
)
def test_a_sample_that_cannot_be_used_says_why_and_the_others_go_on(tmp_path: Path, members: Any, wanted: str):
    assert failure_of(tmp_path, members).startswith(f"failed:{wanted}")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "device"), (tarfile.FIFOTYPE, "device")],
)
def test_a_link_or_a_device_is_never_followed(tmp_path: Path, kind: bytes, wanted: str):
    info = tarfile.TarInfo("bad.png")
    info.type, info.linkname = kind, "/etc/passwd"
    assert failure_of(tmp_path, [("bad.png", info)]) == f"failed:bad.png is a {wanted}, not a file"


def test_a_name_that_is_not_utf_8_is_told_and_kept_out_of_no_table(tmp_path: Path):
    told = failure_of(tmp_path, [("b\udcff.png", picture(1))], "b\\udcff")
    assert told == "failed:its name is not UTF-8; rename it"


@pytest.mark.parametrize("name", ["../bad.png", "a/../../bad.png", "/bad.png"])
def test_a_name_that_leads_out_of_its_tar_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="leads out of it; make the tar anew"):
        plan(write_tar(tmp_path / "set.tar", {"good.png": picture(1), name: picture(2)}))


def test_a_tar_cut_short_anywhere_is_refused_before_any_work(tmp_path: Path):
    whole = write_tar(tmp_path / "whole.tar", {f"{i}.png": picture(i) for i in range(3)}).read_bytes()
    ends = [1, 300, 700, 1024, 1100, 1536, 2048, 2100, 3072]  # in headers, in images, between members, at the end mark
    for end in ends:
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises(
            ConfigError, match=r"(is no tar|cut short or broken after \d.png) \(.*\); fetch it again"
        ) as caught:
            plan(tmp_path / "cut.tar")
        assert "\n" not in str(caught.value)
    broken = bytearray(whole)
    broken[1024 : 1024 + 512] = b"x" * 512
    (tmp_path / "cut.tar").write_bytes(broken)
    with pytest.raises(ConfigError, match="cut short or broken after 0.png"):
        plan(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(whole + whole)  # joined: the second would be passed over
    with pytest.raises(ConfigError, match="cut short or broken after 2.png"):
        plan(tmp_path / "cut.tar")


@pytest.mark.parametrize("how", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused_whatever_its_name(tmp_path: Path, how: str):
    with tarfile.open(tmp_path / f"set.tar.{how}", f"w:{how}") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    for source in (tmp_path / f"set.tar.{how}", tmp_path):
        with pytest.raises(ConfigError, match="members of a compressed tar cannot be read one by one; decompress it"):
            plan(source)
    (tmp_path / f"set.tar.{how}").rename(tmp_path / "set.tar")
    with pytest.raises(ConfigError, match=r"set.tar is compressed \(.*\); members of"):
        plan(tmp_path)


def test_a_set_without_one_usable_sample_ends_in_one_line(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no sample can be used, of set/a: one image wanted, found none"):
        plan(write_tar(tmp_path / "set.tar", {"a.txt": "x"}))
    with pytest.raises(ConfigError, match="no sample can be used, there is none"):
        plan(write_tar(tmp_path / "set.tar", {}))


def test_planning_holds_no_tar(tmp_path: Path):
    import tracemalloc

    blocks = {f"{i:05d}.png": bytes(300_000) for i in range(100)}
    tar = write_tar(tmp_path / "set.tar", blocks)
    del blocks
    tracemalloc.start()
    assert len(plan(tar)) == 100
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 5_000_000  # of 30


def test_a_member_behind_the_end_of_its_file_is_cut_short(tmp_path: Path):
    (tmp_path / "x").write_bytes(picture(1))
    with pytest.raises(TileError, match="10 bytes, 50 wanted: its tar is cut short"):
        tiles.read_image(tmp_path / "x", {"offset": len(picture(1)) - 10, "size": 50})
