"""SAM's masks beside those of segment-anything: same weights, same settings, same tiles."""

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from small_sam import DEEPER, THRESHOLDS, random_sam, scene, train

from urbancross.errors import CheckpointError, ConfigError, TileError
from urbancross.models import sam as models
from urbancross.models import sam_decoder
from urbancross.models.sam_encoder import encode
from urbancross.segments import masks as code
from urbancross.segments.engines import ENGINES
from urbancross.segments.masks import Mask
from urbancross.segments.sam import SMALL_PX, SamMasks

SIZES = [(128, 128), (100, 128), (256, 90), (61, 100), (512, 512), (640, 470)]
EVERYTHING = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("sam") / "small.pth")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "random.pth"
    torch.save(random_sam(DEEPER).state_dict(), path)
    return path


def pixels(mask: Mask) -> np.ndarray:
    return code.decode({"rle": mask.rle, "size": mask.size})


def reference(model: Sam, tile: np.ndarray, **settings) -> list[dict]:
    return SamAutomaticMaskGenerator(model, **settings).generate(tile)


def assert_same(found: list[Mask], wanted: list[dict], close: float = 1e-3) -> None:
    """Each mask has its counterpart at IoU 0.99 or more, one to one, with the same scores and box."""
    left = list(wanted)
    for mask in found:
        ours = pixels(mask)
        iou = [
            (ours & other["segmentation"]).sum() / max((ours | other["segmentation"]).sum(), 1) if ours.any() else 0
            for other in left
        ]
        assert iou, "more masks than segment-anything has"
        other = left.pop(int(np.argmax(iou)))
        assert max(iou) >= 0.99
        assert mask.predicted_iou == pytest.approx(other["predicted_iou"], abs=close)
        assert mask.stability == pytest.approx(other["stability_score"], abs=close)
        x, y, w, h = other["bbox"]
        assert np.abs(np.subtract(mask.box, (x, y, x + w + 1, y + h + 1))).max() <= 1
    assert not left, f"{len(left)} masks of {len(wanted)} are missing"


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_of_a_trained_sam_are_those_of_segment_anything(trained, size):
    settings = THRESHOLDS | {"points_per_side": 12, "box_nms_thresh": 0.9}
    tile, _ = scene(1, *size)
    wanted = reference(models.load(trained), tile, **settings)
    (found,) = SamMasks(str(trained), **settings).masks([tile])
    assert len(wanted) >= 2
    assert_same(found, wanted)


@pytest.mark.parametrize("points", [1, 5, 16])
@pytest.mark.parametrize("size", [(256, 256), (170, 300), (480, 300)], ids=str)
def test_masks_of_random_weights_are_those_of_segment_anything(untrained, size, points):
    model = models.load(untrained)
    tile, _ = scene(2, *size)
    told = reference(model, tile, points_per_side=points, box_nms_thresh=1.0, **EVERYTHING | {"pred_iou_thresh": -9})
    settings = {
        "pred_iou_thresh": float(np.quantile([m["predicted_iou"] for m in told], 0.5)) - 1e-4,
        "stability_score_thresh": 0.3,
        "points_per_side": points,
        "points_per_batch": 7,
        "stability_score_offset": 0.5,
        "box_nms_thresh": 0.9,
    }
    (found,) = SamMasks(str(untrained), **settings).masks([tile])
    assert_same(found, reference(model, tile, **settings))


def test_the_encoder_agrees_with_segment_anythings(untrained):
    encoder = models.load(untrained).image_encoder
    images = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encode(encoder, images), encoder(images), atol=2e-5, rtol=1e-5)


def test_the_decoder_agrees_with_segment_anythings(untrained):
    model = models.load(untrained)
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(64, 16, 16, generator=generator)
    points = torch.rand(5, 2, generator=generator) * 256
    decoder = sam_decoder.fold(model, (16, 16))
    side = sam_decoder.image_side(decoder, embedding)
    ious, drawing, x = sam_decoder.attend(decoder, side, sam_decoder.point_tokens(decoder, points))
    sparse, dense = model.prompt_encoder(points=(points[:, None], torch.ones(5, 1)), boxes=None, masks=None)
    place = model.prompt_encoder.get_dense_pe()
    logits, told = model.mask_decoder(embedding[None], place, sparse, dense, multimask_output=True)
    torch.testing.assert_close(ious, told, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sam_decoder.draw(decoder, drawing, x, 16, 16), logits, atol=2e-5, rtol=1e-5)
    part = sam_decoder.draw(decoder, drawing, x, 7, 11)
    torch.testing.assert_close(part, logits[..., :28, :44], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (100, 256), (300, 210), (512, 512), (256, 700), (33, 1000)], ids=str)
def test_a_mask_reaches_the_tiles_size_as_in_segment_anything(untrained, size):
    maker = SamMasks(str(untrained))
    frame = maker.frame(size)
    logits = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = maker.model.postprocess_masks(logits[None], frame.input_size, size)[0]
    found = maker._over_tile(logits[:, : 4 * frame.rows, : 4 * frame.columns], frame)
    torch.testing.assert_close(found.mT, wanted, atol=1e-4, rtol=1e-4)
    assert (frame.down is not None) == (max(size) <= SMALL_PX)


@pytest.mark.slow
def test_tiles_of_mixed_sizes_have_the_same_masks_alone_and_in_a_batch(trained):
    tiles = [scene(seed, *size)[0] for seed, size in enumerate([(256, 256), (90, 140), (300, 120)])]
    together = list(SamMasks(str(trained), points_per_side=6, encoder_batch=2, **THRESHOLDS).masks(tiles))
    maker = SamMasks(str(trained), points_per_side=6, points_per_batch=5, **THRESHOLDS)
    alone = [next(maker.masks([tile])) for tile in tiles]
    assert [len(found) for found in together] == [len(found) for found in alone]
    assert sum(map(len, alone)) > 3
    for found, wanted in zip(together, alone, strict=True):
        for a, b in zip(found, wanted, strict=True):
            assert (pixels(a) & pixels(b)).sum() >= 0.99 * (pixels(a) | pixels(b)).sum()
            assert a.predicted_iou == pytest.approx(b.predicted_iou, abs=1e-4)


def test_boxes_reach_to_the_last_pixel_as_in_segment_anything(untrained):
    square, part = np.zeros((2, 12, 12), bool)
    square[:10, :10], part[:7, :10] = True, True
    found = [Mask.of(part, 1.0, 0.8), Mask.of(square, 1.0, 0.9)]
    # 9 x 6 of 9 x 9 are 0.667; end-exclusive boxes would overlap by 0.7.
    assert SamMasks(str(untrained), box_nms_thresh=0.68).distinct(found) == [found[1], found[0]]
    assert SamMasks(str(untrained), box_nms_thresh=0.66).distinct(found) == [found[1]]


def test_tiles_are_taken_as_they_are_needed(untrained):
    taken = []

    def tiles():
        for seed in range(5):
            taken.append(seed)
            yield scene(seed, 64, 64)[0]

    found = SamMasks(str(untrained), points_per_side=1, encoder_batch=2).masks(tiles())
    assert taken == []
    next(found)
    assert taken == [0, 1]


def test_a_tile_without_a_good_mask_has_none(untrained):
    tile, _ = scene(0)
    assert list(SamMasks(str(untrained), points_per_side=2, pred_iou_thresh=99.0).masks([tile, tile])) == [[], []]
    assert list(SamMasks(str(untrained), points_per_side=2, stability_score_thresh=2.0).masks([tile])) == [[]]


def test_a_tile_too_narrow_for_the_model_is_that_tiles_failure(untrained):
    with pytest.raises(TileError, match="1 x 900 px is too narrow"):
        next(SamMasks(str(untrained)).masks([np.zeros((900, 1, 3), np.uint8)]))


@pytest.mark.slow
def test_a_smaller_input_finds_much_the_same_shapes(trained):
    tile, _ = scene(3)
    (whole,) = SamMasks(str(trained), points_per_side=8, **THRESHOLDS).masks([tile])
    (fast,) = SamMasks(str(trained), points_per_side=8, input_px=96, **THRESHOLDS).masks([tile])
    best = [
        max(((pixels(a) & pixels(b)).sum() / (pixels(a) | pixels(b)).sum() for b in fast), default=0) for a in whole
    ]
    assert np.median(best) > 0.7
    assert all(mask.size == (256, 256) for mask in fast)


@pytest.mark.slow
def test_half_precision_keeps_the_masks_nearly(trained):
    tile, _ = scene(1, 128, 128)
    (whole,) = SamMasks(str(trained), points_per_side=4, **THRESHOLDS).masks([tile])
    (half,) = SamMasks(str(trained), points_per_side=4, precision="bf16", **THRESHOLDS).masks([tile])
    best = [
        max(((pixels(a) & pixels(b)).sum() / (pixels(a) | pixels(b)).sum() for b in half), default=0) for a in whole
    ]
    assert np.median(best) > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp8"}, "fp8: one of fp32, bf16, fp16"),
        ({"points_per_side": 0}, "--points-per-side 0"),
        ({"input_px": 100}, "--input-px 100: a multiple of 16"),
    ],
)
def test_settings_that_cannot_work_say_so(untrained, settings, message):
    with pytest.raises(ConfigError, match=message):
        SamMasks(str(untrained), **settings)


def test_the_engine_is_known_by_name(untrained):
    assert isinstance(ENGINES["sam"](str(untrained)), SamMasks)
    assert DEEPER.window_size == 6  # which does not divide the 16 tokens of a side: some windows are padded


def test_broken_checkpoints_are_named():
    with pytest.raises(CheckpointError, match="nowhere.pth does not exist"):
        SamMasks("nowhere.pth")
