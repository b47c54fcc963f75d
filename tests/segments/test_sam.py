"""SAM's masks beside those of segment-anything: same weights, same settings, same tiles."""

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from small_sam import SHAPE, THRESHOLDS, random_sam, scene, train

from urbancross.errors import CheckpointError, ConfigError, TileError
from urbancross.models import sam as models
from urbancross.models import sam_decoder
from urbancross.models.sam_encoder import encode
from urbancross.segments import masks as code
from urbancross.segments.engines import ENGINES
from urbancross.segments.masks import Mask
from urbancross.segments.sam import SMALL_PX, SamMasks

SIZES = [(256, 256), (200, 256), (256, 90), (61, 100), (512, 512), (640, 470)]
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
    torch.save(random_sam().state_dict(), path)
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


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_of_a_trained_sam_are_those_of_segment_anything(trained, size):
    maker = SamMasks(str(trained), points_per_side=12, **THRESHOLDS)
    tile, _ = scene(1, *size)
    wanted = reference(models.load(trained), tile, points_per_side=12, **THRESHOLDS)
    (found,) = maker.masks([tile])
    assert len(wanted) >= 3
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
