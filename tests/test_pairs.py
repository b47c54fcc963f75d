"""Tables to batches: a tile with its own captions, in an order that the seed decides."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from urbancross import schemas
from urbancross.errors import ConfigError
from urbancross.pairs import Batch, Pairs, Plan, gather_pairs, text_key
from urbancross.tiles import encode


def ragged() -> Pairs:
    """Three tiles with 1, 3 and 2 captions."""
    starts = torch.tensor([0, 1, 4, 6])
    return Pairs(
        torch.eye(3),
        torch.arange(6.0)[:, None],
        starts,
        torch.arange(6),
        torch.zeros(3, 0, 3),
        torch.zeros(3, 0, dtype=torch.bool),
    )


def test_a_tile_gets_its_own_captions_and_each_of_them_in_time():
    data, g = ragged(), torch.Generator().manual_seed(0)
    seen: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for _ in range(100):
        batch = data.choose(torch.tensor([2, 0, 1]), g)
        for row, caption in zip(batch.rows.tolist(), batch.captions.tolist(), strict=True):
            seen[row].update(caption)
    assert seen == {0: {0}, 1: {1, 2, 3}, 2: {4, 5}}


def test_several_captions_of_a_tile_are_all_different_as_far_as_it_has_them():
    batch = ragged().choose(torch.tensor([1, 0, 2]), torch.Generator().manual_seed(0), captions=3)
    assert sorted(batch.captions[0].tolist()) == [1, 2, 3]
    assert batch.captions[1].tolist() == [0, 0, 0]
    assert set(batch.captions[2].tolist()) == {4, 5}


def test_an_epoch_holds_every_tile_once_in_an_order_of_the_seed():
    def rows(seed: int) -> list[int]:
        return [
            row for step in ragged().steps(Plan(1, seed), 1, len(ragged()), 0, 1) for row in step.tile_keys.tolist()
        ]

    assert sorted(rows(0)) == [0, 1, 2]
    assert rows(0) == rows(0)
    assert len({tuple(rows(seed)) for seed in range(8)}) > 1


def test_processes_share_a_batch_without_overlap_and_cut_what_cannot_be_shared():
    batch = Batch(torch.arange(7), torch.arange(7) * 10)
    parts = [batch.part(rank, 3) for rank in range(3)]
    assert [part.rows.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert parts[2].captions.tolist() == [40, 50]


def test_texts_that_differ_in_case_and_spacing_are_one_text():
    assert text_key("A  lake .") == text_key("a lake .")
    assert text_key("a lake") != text_key("a lake .")
    assert 0 <= text_key("x") < 2**63


def shard() -> dict[str, pa.Table]:
    """A train tile with two captions and one segment, a failed one, a valid one, and a train one without segments."""
    tiles = [{"tile_id": t, "split": s} for t, s in (("a", "train"), ("b", "train"), ("c", "valid"), ("d", "train"))]
    captions = [["One", "two"], ["lost"], ["other"], ["four"]]
    features = [
        {"tile_id": "a", "image": [1.0, 2.0], "texts": [[1.0], [2.0]], "segments": [[5.0, 6.0]], "failure": None},
        {"tile_id": "b", "image": None, "texts": None, "segments": None, "failure": "failed:x"},
        {"tile_id": "c", "image": [3.0, 4.0], "texts": [[3.0]], "segments": [], "failure": None},
        {"tile_id": "d", "image": [7.0, 8.0], "texts": [[4.0]], "segments": [], "failure": None},
    ]
    return {
        "tiles": pa.Table.from_pylist(tiles),
        "captions": pa.table({"captions": captions}),
        "features": pa.Table.from_pylist(features, schema=schemas.features(2, 1)),
    }


def test_gathered_pairs_are_those_of_the_split_each_with_its_own_features():
    data = gather_pairs([shard(), shard()], "train", max_segments=2, images=False)
    assert data.images.tolist() == [[1, 2], [7, 8]] * 2
    assert data.texts.flatten().tolist() == [1, 2, 4] * 2
    assert data.starts.tolist() == [0, 2, 3, 5, 6]
    assert data.text_keys.tolist() == [text_key(t) for t in ("one", "two", "four")] * 2
    assert data.present.tolist() == [[True, False], [False, False]] * 2
    assert data.segments[0].tolist() == [[5, 6], [0, 0]]


def test_a_split_without_pairs_is_said():
    with pytest.raises(ConfigError, match="no tile of split test has a caption"):
        gather_pairs([shard()], "test", 0, images=False)


def test_the_tower_sees_all_eight_orientations_and_only_those(tmp_path: Path):
    tile = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    eight = {np.rot90(side, k).tobytes() for side in (tile, tile[:, ::-1]) for k in range(4)}
    data = Pairs(*(torch.zeros(1),) * 6, encoded=[encode(tile)])
    g = torch.Generator().manual_seed(0)
    seen = {
        np.ascontiguousarray(data.pixels(torch.tensor([0]), 8, 8, g)[0].permute(1, 2, 0).numpy()).tobytes()
        for _ in range(120)
    }
    assert seen == eight
    assert data.pixels(torch.tensor([0, 0]), 8, 5, g).shape == (2, 3, 5, 5)


def test_a_last_short_batch_is_left_out_and_a_batch_is_never_larger_than_the_split():
    def sizes(size: int) -> list[int]:
        steps = ragged().steps(Plan(size, 0), 1, ragged().steps_per_epoch(size), 0, 1)
        return [len(step.tile_keys) for step in steps]

    assert {size: sizes(size) for size in (1, 2, 3, 9)} == {1: [1, 1, 1], 2: [2], 3: [3], 9: [3]}
    for size in (1, 2, 3, 9):
        assert ragged().steps_per_epoch(size) == len(sizes(size))


def test_the_parts_of_a_batch_are_the_batch():
    batch = Batch(torch.tensor([5, 1, 4, 0, 2, 3]), torch.arange(6))
    for world in (1, 2, 3, 6):
        parts = [batch.part(rank, world) for rank in range(world)]
        assert torch.cat([part.rows for part in parts]).tolist() == [5, 1, 4, 0, 2, 3]
        assert torch.cat([part.captions for part in parts]).tolist() == [0, 1, 2, 3, 4, 5]


def test_some_pairs_of_a_step_in_parts_are_those_pairs():
    (step,) = ragged().steps(Plan(3, 0), 1, 1, 0, 1)
    chosen = step.take(torch.tensor([2, 0]))
    assert chosen.tile_keys.tolist() == [step.tile_keys[2], step.tile_keys[0]]
    parts = [chosen.part(rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.texts for part in parts]), step.texts[[2, 0]])
    assert torch.equal(torch.cat([part.images for part in parts]), step.images[[2, 0]])
    assert all(torch.equal(part.text_keys, step.text_keys[[2, 0]]) for part in parts)


def test_segments_beyond_the_slots_are_dropped_and_no_slots_means_no_segments():
    many = shard()
    rows = many["features"].to_pylist()
    rows[0]["segments"] = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    many["features"] = pa.Table.from_pylist(rows, schema=schemas.features(2, 1))
    two = gather_pairs([many], "train", max_segments=2, images=False)
    assert two.segments.tolist() == [[[1, 1], [2, 2]], [[0, 0], [0, 0]]]
    assert two.present.tolist() == [[True, True], [False, False]]
    none = gather_pairs([many], "train", max_segments=0, images=False)
    assert (none.segments.shape, none.present.shape) == ((2, 0, 2), (2, 0))


def test_images_come_along_where_a_tower_learns_and_only_those_of_the_pairs():
    tables = shard()
    tables["tiles"] = tables["tiles"].append_column("image", pa.array([b"a", b"b", b"c", b"d"]))
    assert gather_pairs([tables], "train", 0, images=True).encoded == [b"a", b"d"]
    assert gather_pairs([tables], "train", 0, images=False).encoded is None


def test_crops_are_parts_of_their_tile_from_all_over_it():
    place = np.stack([np.full((4, 4), 7), *np.mgrid[:4, :4]], axis=-1).astype(np.uint8)  # red 7; row and column
    data = Pairs(*(torch.zeros(1),) * 6, encoded=[encode(place)])
    g = torch.Generator().manual_seed(0)
    corners = set()
    for _ in range(60):
        _, row, column = data.pixels(torch.tensor([0]), 4, 3, g)[0]
        assert (sorted(set(row.flatten().tolist())), len(set(column.flatten().tolist()))) in (
            ([0, 1, 2], 3),
            ([1, 2, 3], 3),
        )
        corners.add((int(row.min()), int(column.min())))
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_crops_by_scale_show_between_that_share_of_the_tile_and_all_of_it():
    place = np.stack([np.full((64, 64), 7), *np.mgrid[:64, :64]], axis=-1).astype(np.uint8)
    data = Pairs(*(torch.zeros(1),) * 6, encoded=[encode(place)])
    g = torch.Generator().manual_seed(0)
    crops = data.pixels(torch.zeros(200, dtype=torch.int64), 64, 32, g, scale=0.25)
    assert crops.shape == (200, 3, 32, 32)
    shown = (crops[:, 1].float().amax((1, 2)) - crops[:, 1].float().amin((1, 2)) + 1) / 64  # share of a side
    assert 0.45 < shown.min() < 0.55
    assert shown.max() > 0.95
    assert (shown**2).mean() == pytest.approx(0.625, abs=0.05)  # areas are uniform
    whole = data.pixels(torch.zeros(20, dtype=torch.int64), 64, 32, g, scale=1.0)
    assert len({crop.numpy().tobytes() for crop in whole[:, :1]}) == 1
