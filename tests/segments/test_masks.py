from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_sam import random_sam

from urbancross.errors import TileError
from urbancross.schemas import SEGMENT
from urbancross.segments.choice import choose
from urbancross.segments.crops import crop
from urbancross.segments.engines import ENGINES
from urbancross.segments.masks import FelzenszwalbMasks, GridMasks, Mask, MaskMaker, decode, outline_stability


def pixels_of(maker: MaskMaker, tile: np.ndarray) -> np.ndarray:
    """[S, H, W] bool."""
    (masks,) = maker.masks([tile])
    return np.stack([decode(mask) for mask in masks])


def kept(masks: np.ndarray, predicted_iou: Sequence[float | None] = (), **choice: Any) -> list[dict[str, Any]]:
    """`choose` among `[S, H, W]` bool."""
    told = predicted_iou or [None] * len(masks)
    return choose([Mask.of(mask, predicted_iou=iou) for mask, iou in zip(masks, told, strict=True)], **choice)


def box_mask(x0: int, y0: int, x1: int, y1: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_the_grid_covers_each_pixel_once_even_where_it_cannot_be_halved():
    for shape, count in [((4, 6), 4), ((5, 7), 4), ((1, 5), 2), ((1, 1), 1)]:
        masks = pixels_of(GridMasks(), np.zeros((*shape, 3), dtype=np.uint8))
        assert len(masks) == count
        assert (masks.sum(axis=0) == 1).all()
        assert masks.any(axis=(1, 2)).all()


def test_felzenszwalb_finds_the_two_halves_of_a_two_coloured_tile():
    tile = np.zeros((20, 20, 3), dtype=np.uint8)
    tile[:, 12:] = 255
    masks = pixels_of(FelzenszwalbMasks(sigma=0.0), tile)
    assert sorted(masks.sum(axis=(1, 2)).tolist()) == [160, 240]
    assert (masks[0] == (tile[..., 0] == tile[0, 0, 0])).all() or (masks[1] == (tile[..., 0] == tile[0, 0, 0])).all()


def test_felzenszwalb_never_gives_more_masks_than_the_smallest_size_allows():
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert len(pixels_of(FelzenszwalbMasks(scale=1.0, min_size=0.05), noise)) <= 20


@pytest.fixture(scope="module", params=sorted(ENGINES))
def maker(request, tmp_path_factory):
    if request.param != "sam":
        return ENGINES[request.param]()
    weights = tmp_path_factory.mktemp("sam") / "random.pth"
    torch.save(random_sam().state_dict(), weights)
    return ENGINES["sam"](str(weights), points_per_side=2, pred_iou_thresh=-9.0, stability_score_thresh=0.0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 20)])
def test_tiny_and_one_colour_tiles_give_segments_or_none_but_no_error(maker, shape):
    tile = np.full((*shape, 3), 200, dtype=np.uint8)
    (masks,) = maker.masks([tile])
    for segment in choose(masks):
        assert crop(tile, segment).size > 0


def test_stability_is_the_smaller_mask_over_the_larger():
    # A 4 x 4 square: 2 x 2 = 4 pixels remain, 16 + 4 sides of 4 = 32 come about.
    # The left half: its edge in the tile moves by one of 5 columns, the tile's own edges do not.
    masks = np.stack([box_mask(3, 3, 7, 7), box_mask(0, 0, 5, 10), box_mask(2, 0, 4, 10), box_mask(0, 0, 0, 0)])
    np.testing.assert_allclose([outline_stability(mask) for mask in masks], [4 / 32, 40 / 60, 0.0, 0.0])


def test_rows_fit_the_schema_and_say_where_the_mask_is():
    (row,) = kept(box_mask(2, 3, 6, 8)[None])  # 4 x 5; 2 x 3 inside, 20 + 18 outside
    assert row["box"] == [2, 3, 6, 8]
    assert (row["area"], row["size"], row["rank"], row["predicted_iou"]) == (20, [10, 10], 0, None)
    assert row["stability"] == pytest.approx(6 / 38)
    assert row["score"] == pytest.approx(6 / 38 * 0.2**0.5)
    assert set(row) == {field.name for field in SEGMENT}
    (back,) = pa.array([row], type=SEGMENT).to_pylist()
    np.testing.assert_array_equal(decode(back), box_mask(2, 3, 6, 8))


def test_an_irregular_mask_comes_back_as_it_went_in():
    mask = np.random.default_rng(1).random((17, 31)) < 0.4
    (row,) = kept(mask[None])
    np.testing.assert_array_equal(decode(row), mask)


def test_masks_out_of_the_area_bounds_are_left_out():
    masks = np.stack([box_mask(0, 0, 1, 1), box_mask(0, 0, 10, 6), box_mask(0, 0, 10, 7), box_mask(0, 0, 0, 0)])
    assert [row["area"] for row in kept(masks, min_area=0.02, max_area=0.6)] == [60]
    assert kept(masks[3:], min_area=0.0) == []
    assert kept(np.zeros((0, 10, 10), dtype=bool)) == []


def test_the_best_come_first_whatever_their_order_and_only_so_many():
    masks = np.stack([box_mask(0, 0, 3, 3), box_mask(5, 5, 10, 10), box_mask(6, 0, 10, 4)])
    ranked = kept(masks, max_segments=2)
    assert [(row["area"], row["rank"]) for row in ranked] == [(25, 0), (16, 1)]
    assert kept(masks[::-1], max_segments=2) == ranked


def test_equal_scores_keep_one_order():
    quarters = pixels_of(GridMasks(), np.zeros((10, 10, 3), dtype=np.uint8))
    boxes = [[0, 0, 5, 5], [0, 5, 5, 10], [5, 0, 10, 5], [5, 5, 10, 10]]
    assert [row["box"] for row in kept(quarters)] == boxes
    assert [row["box"] for row in kept(quarters[[2, 0, 3, 1]])] == boxes


def test_predicted_iou_takes_part_in_the_order():
    masks = np.stack([box_mask(0, 0, 5, 5), box_mask(5, 5, 10, 10)])
    ranked = kept(masks, predicted_iou=[0.5, 0.75])
    assert [row["predicted_iou"] for row in ranked] == [0.75, 0.5]
    assert ranked[0]["score"] == pytest.approx(1.5 * ranked[1]["score"])


def test_of_two_masks_that_overlap_the_better_stays():
    masks = np.stack([box_mask(0, 0, 5, 10), box_mask(0, 0, 4, 10)])  # IoU 0.8
    assert [row["area"] for row in kept(masks)] == [50]
    assert [row["area"] for row in kept(masks, max_iou=0.8)] == [50, 40]


def test_a_crop_shows_the_mask_and_the_fill_and_nothing_else():
    tile = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    mask = box_mask(2, 4, 6, 8)
    mask[4, 2] = False
    (segment,) = kept(mask[None])
    cut = crop(tile, segment, padding=0.25, fill=(1, 2, 3))
    expected = np.full((6, 6, 3), (1, 2, 3), dtype=np.uint8)  # one pixel more on each side
    expected[1:5, 1:5] = tile[4:8, 2:6]
    expected[1, 1] = (1, 2, 3)
    np.testing.assert_array_equal(cut, expected)
    assert cut.dtype == np.uint8


def test_padding_stops_at_the_edge_of_the_tile():
    (segment,) = kept(box_mask(0, 5, 5, 10)[None])
    assert crop(np.zeros((10, 10, 3), dtype=np.uint8), segment, padding=0.4).shape == (7, 7, 3)


def test_a_segment_of_another_tile_size_is_refused():
    (segment,) = kept(box_mask(0, 5, 5, 10)[None])
    with pytest.raises(TileError, match="10 x 10 px and this one has 8 x 12"):
        crop(np.zeros((12, 8, 3), dtype=np.uint8), segment)
