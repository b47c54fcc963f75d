"""Splits: groups are divided whole; blocks keep a buffer between them; near-copies stay together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from urbancross.duplicates import near_duplicates, neighbours_in_place, perceptual_hashes
from urbancross.errors import ConfigError
from urbancross.splits import BUFFER, LEFT_OUT, Shares, assign, block, divide, is_buffer

METRE = 1 / 111_320  # degrees of latitude


def tile(name: str, x_m: float, y_m: float, split: str | None = None, side_m: float = 100.0) -> dict[str, Any]:
    """A tile so many metres east and north of a place on the equator."""
    bounds = (x_m * METRE, y_m * METRE, (x_m + side_m) * METRE, (y_m + side_m) * METRE)
    return {"tile_id": name, "bounds": bounds, "failure": None, "split": split, "source": name, "window": None}


def grid(across: int, date: str = "") -> list[dict[str, Any]]:
    return [tile(f"{x}-{y}{date}", 100 * x, 100 * y) for x in range(across) for y in range(across)]


def test_groups_are_split_by_quota_and_the_order_they_come_in_changes_nothing():
    groups = [f"scene{number}" for number in range(20)]
    splits = divide(groups, Shares(seed=3))
    counts = {name: list(splits.values()).count(name) for name in ("train", "valid", "test")}
    assert counts == {"train": 12, "valid": 3, "test": 5}
    assert divide(reversed(groups), Shares(seed=3)) == splits
    assert divide(groups, Shares(seed=4)) != splits


def test_a_small_share_still_gets_a_group_and_a_share_of_nothing_none():
    splits = divide(["a", "b", "c"], Shares(valid=0.01, test=0.01))
    assert sorted(splits.values()) == ["test", "train", "valid"]
    assert set(divide(["a", "b", "c"], Shares(valid=0, test=0)).values()) == {"train"}
    assert set(divide(["a", "b"], Shares(valid=0.01, test=0.01)).values()) == {"train"}


def test_blocks_are_as_wide_as_high_anywhere_and_one_lies_on_either_side_of_the_antimeridian():
    for lat in (0.0, 60.0, -75.0):
        across = {block((lon, lat, lon, lat), 50_000) for lon in np.arange(10, 20, 0.01)}
        wanted = 10 * 111_320 * np.cos(np.radians(lat)) / 50_000
        assert abs(len(across) - wanted) <= 2
    up = {block((10, lat, 10, lat), 50_000) for lat in np.arange(10, 20, 0.01)}
    assert abs(len(up) - 10 * 110_574 / 50_000) <= 2
    assert block((179.9, 0, -179.9, 0.1), 1000) == block((-180, 0, -180, 0.1), 1000)
    assert block((-180, -90, 180, -89), 5000)


@pytest.mark.parametrize("seed", range(3))
def test_by_place_two_dates_share_a_split_and_no_two_splits_come_within_a_tile_of_each_other(seed: int):
    rows = grid(24) + grid(24, " later")
    assign(rows, Shares(by="place", block_m=600, seed=seed), {})
    kept = [row for row in rows if row["failure"] is None]
    by_id = {row["tile_id"]: row for row in rows}
    assert all(by_id[f"{row['tile_id']} later"]["split"] == row["split"] for row in rows[: 24 * 24])
    near = neighbours_in_place([row["bounds"] for row in kept], [row["bounds"] for row in kept], 1.0)
    assert all(kept[i]["split"] == kept[j]["split"] for i, j in near.tolist())
    assert {row["split"] for row in kept} == {"train", "valid", "test"}
    assert 0.4 * len(rows) < len(kept) < len(rows)
    assert not any(row["failure"] for row in rows if row["split"] == "test")  # others make room for it
    assert {row["failure"] for row in rows if row["split"] == "valid"} <= {None, f"{BUFFER}test"}


def test_a_source_that_grows_keeps_the_splits_it_has_and_new_tiles_make_room():
    shares = Shares(by="place", block_m=600)
    first = grid(12)
    assign(first, shares, {})
    known = {row["tile_id"]: LEFT_OUT if is_buffer(row) else row["split"] for row in first}
    grown = grid(24)
    assign(grown, shares, known)
    before = {row["tile_id"]: row for row in first}
    for row in grown:
        if row["tile_id"] in known:
            assert is_buffer(row) == is_buffer(before[row["tile_id"]])
            assert is_buffer(row) or row["split"] == before[row["tile_id"]]["split"]
    kept = [row for row in grown if row["failure"] is None]
    near = neighbours_in_place([row["bounds"] for row in kept], [row["bounds"] for row in kept], 1.0)
    assert all(kept[i]["split"] == kept[j]["split"] for i, j in near.tolist())
    assert {row["split"] for row in kept if row["tile_id"] not in known} == {"train", "valid", "test"}


def test_a_tile_without_a_place_is_named_and_one_that_failed_is_not_asked():
    rows = [tile("a", 0, 0), tile("c", 9000, 0), {**tile("b", 0, 0), "bounds": None, "failure": "failed:no raster"}]
    assign(rows, Shares(by="place", valid=0, test=0.5), {})
    assert sorted(row["split"] for row in rows[:2]) == ["test", "train"]  # what failed is no place of its own
    for row in rows:
        row["failure"], row["split"] = None, None
    with pytest.raises(ConfigError, match="--split-by place: b does not say where it lies; give its bounds, or"):
        assign(rows, Shares(by="place"), {})


def test_one_split_for_all_goes_before_what_stays_together():
    rows = [tile("a", 0, 0), tile("b", 50, 0, "valid")]
    assign(rows, Shares(split="test", by="place"), {})
    assert [(row["split"], row["failure"]) for row in rows] == [("test", None), ("valid", None)]


def test_by_look_near_copies_stay_together_and_one_of_a_tile_that_has_a_split_follows_it(tmp_path: Path):
    def write(name: str, pixels: np.ndarray, split: str | None = None) -> dict[str, Any]:
        Image.fromarray(pixels).save(tmp_path / name, quality=90)
        return {**tile(name, 0, 0, split), "bounds": None, "source": str(tmp_path / name)}

    def scene(seed: int) -> np.ndarray:
        waves = gaussian_filter(np.random.default_rng(seed).normal(size=(64, 64, 3)), (6, 6, 0))
        return (255 * (waves - waves.min()) / np.ptp(waves)).astype(np.uint8)

    rows = []
    for seed in range(12):
        pixels = scene(seed)
        rows.append(write(f"{seed}.jpg", pixels, "test" if seed == 0 else None))
        rows.append(write(f"{seed}-turned.jpg", np.rot90(pixels, seed % 4)[:, :: (-1) ** seed]))
    rows += [write("plain.jpg", np.full((64, 64, 3), 90, np.uint8))]
    rows += [{**tile("gone.jpg", 0, 0), "bounds": None, "source": str(tmp_path / "gone.jpg")}]
    like_two = [write(f"{name}.jpg", scene(99), split) for name, split in (("x", "train"), ("y", "test"), ("z", None))]
    assign([*rows, *like_two], Shares(by="look", valid=0.3, test=0.3), {}, lambda row: Path(row["source"]).read_bytes())
    assert [row["failure"] for row in like_two] == [None, None, f"{BUFFER}test and train"]
    splits = {row["tile_id"]: row["split"] for row in rows}
    assert all(splits[f"{seed}.jpg"] == splits[f"{seed}-turned.jpg"] for seed in range(12))
    assert splits["0-turned.jpg"] == "test"
    assert set(splits.values()) == {"train", "valid", "test"}
    hashes = np.stack([perceptual_hashes(np.asarray(Image.open(row["source"]))) for row in rows[:24]])
    pairs = near_duplicates(hashes[:, 0], hashes, 4)
    assert all(rows[i]["split"] == rows[j]["split"] for i, j in pairs.tolist())


def test_blocks_that_leave_a_split_without_tiles_are_refused_with_what_there_is():
    rows = grid(5)
    with pytest.raises(
        ConfigError, match=r"blocks of 90000 m leave no tile for valid and test \(25 train, .*--block-m"
    ):
        assign(rows, Shares(by="place", block_m=90000), {})
    again = grid(5)
    assign(again, Shares(by="place", block_m=90000, valid=0, test=0), {})
    assert {row["split"] for row in again} == {"train"}
