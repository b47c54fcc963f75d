import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rasterio
from rasterio.transform import from_origin

from urbancross import schemas, sources
from urbancross.errors import ConfigError
from urbancross.scenes.grids import Pixels
from urbancross.scenes.tiling import Tiling
from urbancross.splits import Shares


def write_set(folder: Path, *lines: dict | str, images: tuple[str, ...] = ("a.jpg",)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")  # a plan never opens an image
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_scene(file: Path, width: int = 7, height: int = 4, crs: str | None = "EPSG:32635") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 3, "dtype": "uint8", "crs": crs}
    with rasterio.open(file, "w", transform=from_origin(500_000, 6_000_000, 10, 10), **profile) as raster:
        raster.write(np.zeros((3, height, width), dtype=np.uint8))


def plan(source: Path, images: Path | None = None, tile_px: int = 2, valid=0.25, test=0.25, seed=0) -> list[dict]:
    return sources.plan(
        str(source), images and str(images), "north", Tiling(Pixels(tile_px)), Shares(None, valid, test, seed)
    )


def test_a_captions_file_becomes_a_row_per_line(tmp_path):
    given = {
        "image": "img/b.png",
        "captions": [" two boats ", "", "a quay"],
        "split": "test",
        "bounds": [24, 60, 25, 61],
    }
    given |= {"crs": "EPSG:32635", "gsd_m": 0.5, "datetime": "2024-06-01T10:00:00Z", "note": "ignored"}
    rows = plan(write_set(tmp_path, {"image": "a.jpg"}, "", given))
    told = (tmp_path / "a.jpg").stat()
    assert [row.pop("source_version") for row in rows] == [f"{told.st_size}-{int(told.st_mtime)}", None]
    assert rows == [
        {
            **{"tile_id": "a.jpg", "source": str(tmp_path / "a.jpg"), "domain": "north", "window": None},
            "colours": None,
            **{"captions": None, "split": "train", "bounds": None, "crs": None, "gsd_m": None, "datetime": None},
            "failure": None,
        },
        {
            **{"tile_id": "img/b.png", "source": str(tmp_path / "img/b.png"), "domain": "north", "window": None},
            "colours": None,
            **{"captions": ["two boats", "a quay"], "split": "test", "bounds": [24.0, 60.0, 25.0, 61.0]},
            **{"crs": "EPSG:32635", "gsd_m": 0.5, "datetime": "2024-06-01T10:00:00Z", "failure": None},
        },
    ]
    assert pa.Table.from_pylist(rows, schema=schemas.PLAN).num_rows == 2


def test_the_json_of_rsicd_gives_raw_sentences_and_its_val_is_valid(tmp_path):
    images = [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "Many trees .", "tokens": ["many"]}]},
        {"filename": "b.jpg", "split": "val", "sentences": [{"raw": "a"}, {"raw": "b"}]},
        {"filename": "c.jpg", "split": "restval"},
    ]
    write_set(tmp_path / "images")  # `images` beside the file is where its paths start
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps({"images": images, "dataset": "rsicd"}))
    rows = plan(tmp_path / "dataset_rsicd.json")
    assert [row["tile_id"] for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [row["split"] for row in rows] == ["train", "valid", "train"]
    assert [row["captions"] for row in rows] == [["Many trees ."], ["a", "b"], None]
    assert rows[0]["source"] == str(tmp_path / "images" / "a.jpg")


def test_the_csv_of_skyscript_gives_its_titles_each_once(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "sky.csv").write_text(
        'filepath,title,title_multi_objects\na.jpg,"a lake, blue",a lake and a road\nb.jpg,a road,a road\nc.jpg,,\n'
    )
    rows = plan(tmp_path / "sky.csv")
    assert [(row["tile_id"], row["captions"]) for row in rows] == [
        ("a.jpg", ["a lake, blue", "a lake and a road"]),
        ("b.jpg", ["a road"]),
        ("c.jpg", []),
    ]


def test_images_says_where_paths_start(tmp_path):
    write_set(tmp_path / "set", {"image": "a.jpg"}, images=())
    write_set(tmp_path / "elsewhere")
    assert plan(tmp_path / "set", tmp_path / "elsewhere")[0]["source"] == str(tmp_path / "elsewhere" / "a.jpg")
    with pytest.raises(ConfigError, match=r"--images .*nowhere: no such folder"):
        plan(tmp_path / "set", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "not JSON"),
        ("[1]", "want {"),
        ('{"captions": ["x"]}', "want {"),
        ('{"image": ""}', "want {"),
        ('{"image": 7}', "want {"),
        ('{"image": "../x.jpg"}', r"'\.\./x\.jpg' is not a path below"),
        ('{"image": "img/../../x.jpg"}', "is not a path below"),
        ('{"image": "/etc/passwd"}', "'/etc/passwd' is not a path below"),
        ('{"image": "b.jpg", "captions": "one"}', "captions must be a list of strings"),
        ('{"image": "b.jpg", "captions": [1]}', "captions must be a list of strings"),
        ('{"image": "b.jpg", "split": "dev"}', "split 'dev' is none of train, valid"),
        ('{"image": "b.jpg", "split": ["train"]}', r"split \['train'\] is none of"),
        ('{"image": "b.jpg", "bounds": [1, 2, 3]}', "bounds must be"),
        ('{"image": "b.jpg", "bounds": 7}', "bounds must be"),
        ('{"image": "b.jpg", "bounds": ["w", 2, 3, 4]}', "bounds must be"),
        ('{"image": "b.jpg", "bounds": [25, 60, 24, 61]}', "bounds must be"),
        ('{"image": "b.jpg", "bounds": [500000, 60, 500100, 61]}', "bounds must be"),
        ('{"image": "b.jpg", "bounds": [NaN, 60, 24, 61]}', "bounds must be"),
        ('{"image": "b.jpg", "gsd_m": "fine"}', "gsd_m must be a number of metres, got 'fine'"),
        ('{"image": "b.jpg", "datetime": 2024}', "datetime must be a string, got 2024"),
        ('{"image": "b.jpg", "crs": 32635}', "crs must be a string, got 32635"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_by_its_number(tmp_path, line, problem):
    source = write_set(tmp_path, {"image": "a.jpg"}, "", line)
    with pytest.raises(ConfigError, match=rf"captions\.jsonl line 3: .*{problem}"):
        plan(source)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"split": "train"}, "has no filename"),
        ("a.jpg", "has no filename"),
        ({"filename": "../a.jpg"}, "is not a path below"),
        ({"filename": "a.jpg", "sentences": [{"tokens": ["x"]}]}, "captions must be a list of strings"),
        ({"filename": "a.jpg", "sentences": [7]}, "captions must be a list of strings"),
        ({"filename": "a.jpg", "sentences": "one"}, "captions must be a list of strings"),
    ],
)
def test_an_entry_of_rsicds_json_that_cannot_be_used_is_named_by_its_place(tmp_path, entry, problem):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "set.json").write_text(json.dumps({"images": [{"filename": "a.jpg"}, entry]}))
    with pytest.raises(ConfigError, match=rf"set\.json images\[1\]: .*{problem}"):
        plan(tmp_path / "set.json")


def test_an_image_that_stands_twice_is_named_with_both_entries(tmp_path):
    source = write_set(tmp_path, {"image": "a.jpg"}, {"image": "b.jpg"}, {"image": "./a.jpg"})
    with pytest.raises(ConfigError, match=r"a\.jpg stands in entries 1 and 3; give one entry per image"):
        plan(source)


def test_a_set_none_of_whose_images_is_there_points_to_images(tmp_path):
    source = write_set(tmp_path, {"image": "a.jpg"}, {"image": "b.jpg"}, images=())
    with pytest.raises(ConfigError, match=r"none of its 2 images is there, .*a\.jpg; .* --images"):
        plan(source)
    (tmp_path / "b.jpg").write_bytes(b"")  # one is enough: the other becomes a failed row of its own
    assert len(plan(source)) == 2


@pytest.mark.parametrize("name", ["captions.jsonl", "set.json", "set.csv"])
def test_an_empty_set_is_refused_in_every_dialect(tmp_path, name):
    (tmp_path / "captions.jsonl").write_text("\n\n")
    (tmp_path / "set.json").write_text('{"images": []}')
    (tmp_path / "set.csv").write_text("filepath,title\n")
    with pytest.raises(ConfigError, match=rf"{name} has no entries"):
        plan(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("captions.jsonl", b'{"image": "\xe9.jpg"}', "not UTF-8"),
        ("set.json", b"[]", "want {"),
        ("set.json", b'{"images": ', "is not JSON"),
        ("set.csv", b"path,title\na.jpg,x\n", "want columns filepath and title, found"),
        ("set.csv", b"", "want columns filepath and title, found None"),
        ("set.csv", b"filepath,title\na.jpg," + b"x" * 200_000, "not CSV"),
        ("set.arrow", b"ARROW1", "unknown kind .arrow; give a folder with captions"),
        ("README", b"", "unknown kind of file"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, name, data, problem):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=f"{name}.*{problem}"):
        plan(tmp_path / name)


def test_a_missing_source_and_a_folder_with_nothing_to_read_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--source .*absent: no such file or folder"):
        plan(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"neither captions\.jsonl nor \*\.tif there"):
        plan(tmp_path)


def test_a_scene_becomes_whole_cells_named_by_row_and_column(tmp_path):
    write_scene(tmp_path / "sub" / "kyiv.tif", width=7, height=5)  # of 2 px: 3 columns and 2 rows, a rest each
    write_scene(tmp_path / "lviv.TIFF", width=2, height=2)
    rows = plan(tmp_path)
    kyiv = [row for row in rows if "kyiv" in row["tile_id"]]
    assert [(row["tile_id"], row["window"]) for row in kyiv] == [
        ("sub/kyiv/00000-00000", (0, 0, 2, 2)),
        ("sub/kyiv/00000-00001", (2, 0, 4, 2)),
        ("sub/kyiv/00000-00002", (4, 0, 6, 2)),
        ("sub/kyiv/00001-00000", (0, 2, 2, 4)),
        ("sub/kyiv/00001-00001", (2, 2, 4, 4)),
        ("sub/kyiv/00001-00002", (4, 2, 6, 4)),
    ]
    assert {row["source"] for row in kyiv} == {str(tmp_path / "sub" / "kyiv.tif")}
    assert [row["tile_id"] for row in rows if row not in kyiv] == ["lviv/00000-00000"]
    assert {row["domain"] for row in rows} == {"north"}
    assert pa.Table.from_pylist(rows, schema=schemas.PLAN).num_rows == 7


def test_all_cells_of_a_scene_share_a_split(tmp_path):
    for number in range(4):
        write_scene(tmp_path / f"scene{number}.tif")
    rows = plan(tmp_path)
    splits = {
        scene: {row["split"] for row in rows if row["tile_id"].startswith(scene)}
        for scene in ("scene0", "scene1", "scene2", "scene3")
    }
    assert all(len(found) == 1 for found in splits.values())
    assert sorted(found.pop() for found in splits.values()) == ["test", "train", "train", "valid"]


def test_shares_that_leave_nothing_to_train_on_are_refused(tmp_path):
    write_scene(tmp_path / "a.tif")
    with pytest.raises(ConfigError, match=r"--valid-share 0\.5 and --test-share 0\.5 leave nothing"):
        plan(tmp_path, valid=0.5, test=0.5)


def test_a_broken_scene_becomes_a_failed_row_while_the_others_go_on(tmp_path):
    write_scene(tmp_path / "good.tif", width=2, height=2)
    write_scene(tmp_path / "placeless.tif", width=2, height=2, crs=None)
    (tmp_path / "broken.tif").write_bytes(b"II*\0 no raster")
    failures = {row["tile_id"]: row["failure"] for row in plan(tmp_path)}
    assert failures.keys() == {"good/00000-00000", "placeless", "broken"}
    assert failures["good/00000-00000"] is None
    assert failures["broken"].startswith("failed:not a raster")
    assert failures["placeless"].startswith("failed:no coordinate reference system")
    pa.Table.from_pylist(plan(tmp_path), schema=schemas.PLAN)


def test_a_folder_whose_scenes_are_all_broken_is_refused(tmp_path):
    (tmp_path / "broken.tif").write_bytes(b"II*\0 no raster")
    with pytest.raises(ConfigError, match=r"no scene can be used, broken\.tif: not a raster"):
        plan(tmp_path)


def test_a_scene_smaller_than_a_tile_is_skipped_and_none_at_all_is_refused(tmp_path):
    write_scene(tmp_path / "small.tif", width=3, height=9)
    with pytest.raises(
        ConfigError, match=r"no scene can be used, small\.tif: 3 x 9 px, smaller than a tile of 4; lower --tile-px"
    ):
        plan(tmp_path, tile_px=4)
    write_scene(tmp_path / "large.tif", width=4, height=4)
    large, small = plan(tmp_path, tile_px=4)
    assert (large["tile_id"], large["failure"]) == ("large/00000-00000", None)
    assert (small["tile_id"], small["failure"][:25]) == ("small", "skipped:3 x 9 px, smaller")


def test_two_scenes_of_one_name_are_told_apart_by_their_folders(tmp_path):
    write_scene(tmp_path / "2023" / "kyiv.tif", width=2, height=2)
    write_scene(tmp_path / "2024" / "kyiv.tif", width=2, height=2)
    assert [row["tile_id"] for row in plan(tmp_path)] == ["2023/kyiv/00000-00000", "2024/kyiv/00000-00000"]


@pytest.mark.parametrize("path", ["images/a.jpg", "a.jpg"])
def test_image_paths_start_beside_the_table_or_in_its_images_folder(tmp_path, path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "sky.csv").write_text(f"filepath,title\n{path},a lake\n")
    assert plan(tmp_path / "sky.csv")[0]["source"] == str(tmp_path / "images" / "a.jpg")


def test_a_set_that_names_no_split_is_divided_or_is_of_the_split_that_is_given(tmp_path):
    source = write_set(tmp_path, *({"image": f"{number}.jpg", "captions": ["x"]} for number in range(20)))
    (tmp_path / "0.jpg").touch()
    splits = [row["split"] for row in plan(source)]
    assert {name: splits.count(name) for name in set(splits)} == {"train": 10, "valid": 5, "test": 5}
    told = sources.plan(str(source), None, "north", Tiling(Pixels(2)), Shares("test"))
    assert {row["split"] for row in told} == {"test"}


def test_a_split_that_the_set_names_stays(tmp_path):
    lines = [{"image": f"{number}.jpg", "captions": ["x"], "split": "valid"} for number in range(4)]
    (tmp_path / "0.jpg").touch()
    assert {row["split"] for row in plan(write_set(tmp_path, *lines))} == {"valid"}


def test_odd_input_becomes_one_line_or_a_failed_tile(tmp_path):
    source = write_set(tmp_path, {"image": "0.jpg", "captions": ["a \ud800 b"]}, {"image": "x" * 5000, "captions": []})
    (tmp_path / "0.jpg").touch()
    assert plan(source)[0]["captions"] == ["a ? b"]
    pa.Table.from_pylist(plan(source), schema=schemas.PLAN)
    whole = (tmp_path / "captions.jsonl").read_bytes()
    (tmp_path / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + whole)  # as some editors save UTF-8
    assert len(plan(source)) == 2
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "captions.jsonl").mkdir()
    with pytest.raises(ConfigError, match="neither captions"):
        plan(source)
