"""The image tower that comes alone: the same features as open_clip's, and only where it is the same tower."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from learning import OPEN_CLIP, small_open_clip
from safetensors.torch import load_file, save_file

from urbancross import storage
from urbancross.errors import CheckpointError
from urbancross.models import checkpoints, image_tower
from urbancross.models.query_bank import QueryBank

TILES = [np.random.default_rng(seed).integers(0, 255, (48, 60, 3), dtype=np.uint8) for seed in range(3)]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_open_clip(tmp_path_factory.mktemp("tower") / "small")


def told(quick_gelu: bool = False, **vision: Any) -> dict[str, Any]:
    settings = copy.deepcopy(OPEN_CLIP)
    settings["model_cfg"]["quick_gelu"] = quick_gelu
    settings["model_cfg"]["vision_cfg"] |= vision
    return settings


@pytest.mark.parametrize(
    "settings",
    [
        told(),
        told(quick_gelu=True),
        told(layers=1),
        told(head_width=16, mlp_ratio=2.5, patch_size=12),
        told(image_size=40, patch_dropout=0.5),  # the last pixels belong to no patch; nothing is dropped any more
    ],
)
def test_features_are_those_of_open_clip(settings: dict[str, Any]):
    assert image_tower.is_one(settings)
    torch.manual_seed(3)
    model = settings["model_cfg"]
    theirs = open_clip.CLIP(**model).visual.eval()
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # biases and norms begin as zeros and ones
    ours = image_tower.ImageTower(settings).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 3, *[model["vision_cfg"]["image_size"]] * 2)
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), theirs(pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "vision",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True},
        {"ls_init_value": 0.1},
        {"layers": [1, 1, 1, 1]},
        {"image_size": [48, 64]},
        {"timm_model_name": "efficientnet_lite0"},
    ],
)
def test_another_tower_is_left_to_open_clip(vision: dict[str, Any]):
    assert not image_tower.is_one(told(**vision))


def test_without_texts_a_local_model_sees_the_same(given: Path):
    model = checkpoints.resolve(f"local-dir:{given}")
    alone, whole = checkpoints.load(model, texts=False), checkpoints.load(model)
    assert isinstance(alone.towers, image_tower.ImagesOnly)
    assert (alone.image_px, alone.mean, alone.std, alone.width) == (whole.image_px, whole.mean, whole.std, whole.width)
    np.testing.assert_allclose(alone.encode_images(TILES), whole.encode_images(TILES), atol=1e-6)
    np.testing.assert_allclose(alone.encode_segments(TILES), whole.encode_segments(TILES), atol=1e-6)


def test_without_texts_an_architecture_with_a_file_of_weights_sees_the_same(tmp_path: Path):
    torch.manual_seed(4)
    file = tmp_path / "drawn.safetensors"
    save_file(open_clip.create_model("ViT-S-32-alt", pretrained=None).state_dict(), file)
    model = checkpoints.resolve(f"ViT-S-32-alt/{file}")
    alone, whole = checkpoints.load(model, texts=False), checkpoints.load(model)
    assert isinstance(alone.towers, image_tower.ImagesOnly)
    assert (alone.image_px, alone.mean, alone.std) == (whole.image_px, whole.mean, whole.std)
    np.testing.assert_allclose(alone.encode_images(TILES), whole.encode_images(TILES), atol=1e-6)


def test_without_texts_a_checkpoint_sees_the_same_with_its_bank_and_its_own_segment_tower(given: Path, tmp_path: Path):
    encoder = checkpoints.load(checkpoints.resolve(f"local-dir:{given}"))
    encoder.keep_segment_tower()
    with torch.no_grad():
        for parameter in encoder.unlock_image_tower():
            parameter += 0.01 * torch.randn_like(parameter)
        encoder.heads["image"].project.weight += 0.1
        encoder.heads["image"].centre += 0.1
    encoder.bank = QueryBank.of(*torch.nn.functional.normalize(torch.randn(2, 9, 24), dim=-1))
    encoder.views.fill_(2)
    with storage.publish_folder(tmp_path / "c") as temporary:
        checkpoints.save(encoder, temporary, "local-dir:/gone", None, {}, {})
    alone = checkpoints.load(checkpoints.resolve(str(tmp_path / "c")), texts=False)
    assert isinstance(alone.towers, image_tower.ImagesOnly)
    np.testing.assert_allclose(alone.encode_images(TILES), encoder.encode_images(TILES), atol=1e-6)
    np.testing.assert_allclose(alone.encode_segments(TILES), encoder.encode_segments(TILES), atol=1e-6)


def test_without_texts_a_checkpoint_of_the_starter_sees_the_same(tmp_path: Path):
    encoder = checkpoints.load(checkpoints.resolve("starter", 16))
    with storage.publish_folder(tmp_path / "c") as temporary:
        checkpoints.save(encoder, temporary, "starter", None, {}, {})
    alone = checkpoints.load(checkpoints.resolve(str(tmp_path / "c")), texts=False)
    assert isinstance(alone.towers, image_tower.ImagesOnly)
    np.testing.assert_array_equal(alone.encode_images(TILES), encoder.encode_images(TILES))


def test_without_texts_a_bare_starter_sees_what_it_sees_with_them():
    model = checkpoints.resolve("starter", 16)
    alone, whole = checkpoints.load(model, texts=False), checkpoints.load(model)
    np.testing.assert_array_equal(alone.encode_images(TILES), whole.encode_images(TILES))


def test_weights_that_do_not_fit_are_refused_without_texts_as_with_them(given: Path, tmp_path: Path):
    folder = small_open_clip(tmp_path / "other")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.proj"] = torch.zeros(64, 25)
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match="cannot load the weights of local-dir:"):
        checkpoints.load(checkpoints.resolve(f"local-dir:{folder}"), texts=False)
    encoder = checkpoints.load(checkpoints.resolve(f"local-dir:{given}"))
    with storage.publish_folder(tmp_path / "c") as temporary:
        checkpoints.save(encoder, temporary, "local-dir:/gone", None, {}, {})
    kept = load_file(tmp_path / "c" / "model.safetensors")
    del kept["towers.visual.ln_post.bias"]
    save_file(kept, tmp_path / "c" / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        checkpoints.load(checkpoints.resolve(str(tmp_path / "c")), texts=False)
