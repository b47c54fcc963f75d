"""Models by name and by folder: the right weights, whole, or one line that says why not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from urbancross import storage
from urbancross.errors import CheckpointError, ConfigError
from urbancross.models import checkpoints, starter
from urbancross.models.dual_encoder import DualEncoder, square


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return checkpoints.load(checkpoints.resolve("starter", 16))


@pytest.fixture(scope="module")
def saved(encoder: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "c"
    with storage.publish_folder(folder) as temporary:
        checkpoints.save(encoder, temporary, "starter", "towers-digest", {"seed": 0})
    return folder


def test_an_unknown_model_is_met_with_those_of_like_names():
    with pytest.raises(ConfigError, match="startr: neither a checkpoint folder nor a model; try starter"):
        checkpoints.resolve("startr")
    with pytest.raises(ConfigError, match="try ViT-L-14/openai"):
        checkpoints.resolve("ViT-L-14/opneai")


def test_a_known_name_of_the_hub_is_resolved_without_the_hub():
    model = checkpoints.resolve("ViT-B-32/openai")
    assert (checkpoints.width_of(model), checkpoints.feature_widths(model)) == (512, (512, 512))


def test_a_saved_model_comes_back_whole(encoder: DualEncoder, saved: Path):
    model = checkpoints.resolve(str(saved))
    assert (model.base, model.width, model.towers) == ("starter", 16, "towers-digest")
    again = checkpoints.load(model)
    tiles = [np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)]
    np.testing.assert_array_equal(again.encode_images(tiles), encoder.encode_images(tiles))
    np.testing.assert_array_equal(again.encode_texts(["a lake"]), encoder.encode_texts(["a lake"]))


def test_a_checkpoint_that_is_not_whole_is_named(saved: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is no checkpoint: checkpoint.json, model.safetensors missing"):
        checkpoints.resolve(str(tmp_path / "empty"))
    cut = tmp_path / "cut"
    shutil.copytree(saved, cut)
    (cut / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut/model.safetensors cannot be loaded"):
        checkpoints.load(checkpoints.resolve(str(cut)))


def test_weights_of_another_width_are_refused(saved: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    told = storage.read_json(other / "checkpoint.json", "checkpoint")
    storage.write_json(other / "checkpoint.json", told | {"width": 32})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        checkpoints.load(checkpoints.resolve(str(other)))


def test_one_changed_weight_changes_the_fingerprint(encoder: DualEncoder, saved: Path, tmp_path: Path):
    weights = load_file(saved / "model.safetensors")
    weights["scale"] = weights["scale"] + 1e-6
    save_file(weights, tmp_path / "changed.safetensors")
    assert storage.digest(tmp_path / "changed.safetensors") != checkpoints.resolve(str(saved)).fingerprint


def test_the_starter_carries_the_packages_weights(encoder: DualEncoder):
    given = list(torch.load(starter.weight_files()[0], weights_only=True).values())
    held = list(encoder.towers.visual.trunk.state_dict().values())
    assert len(given) == len(held) + 2  # the classifier is left out
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(held, given, strict=False))
    norms = [module for module in encoder.towers.visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}


def test_text_features_are_the_sentence_encoders_mean_over_words(encoder: DualEncoder):
    from transformers import AutoModel, AutoTokenizer

    folder = str(starter.weight_files()[1])
    texts = ["a lake", "many boats in a large harbour near the city"]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        words = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
        here = tokens["attention_mask"][..., None]
        torch.testing.assert_close(
            encoder.text_features(texts), (words * here).sum(1) / here.sum(1), rtol=1e-4, atol=1e-5
        )


def test_equal_texts_are_encoded_once_and_rows_keep_their_order(encoder: DualEncoder):
    found = encoder.encode_texts(["a wood", "a lake", "a wood", "water and a very long shore of sand"])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[1], encoder.encode_texts(["a lake"])[0], atol=1e-5)
    assert not np.allclose(found[0], found[1])
    assert encoder.encode_texts([]).shape == (0, 16)


def test_similar_ground_lies_closer_than_different_ground(encoder: DualEncoder):
    """The tower's own features, which a wrong order of weights or a wrong scaling of pixels would scramble."""
    rng = np.random.default_rng(0)

    def stripes(period: int) -> np.ndarray:
        wave = (np.arange(224) // period % 2 * 150)[None, :, None] + rng.integers(0, 40, (224, 224, 3))
        return wave.astype(np.uint8)

    pixels = torch.from_numpy(np.stack([stripes(8), stripes(8), stripes(56), stripes(56)])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        features = torch.nn.functional.normalize(encoder.image_features(pixels), dim=1)
    alike = features @ features.T
    assert min(alike[0, 1], alike[2, 3]) > max(alike[0, 2], alike[1, 3])


@pytest.mark.parametrize("shape", [(10, 40, 3), (40, 10, 3), (1, 1, 3), (16, 16, 3), (17, 16, 3)])
def test_any_shape_becomes_a_square(shape: tuple[int, int, int]):
    assert square(np.zeros(shape, np.uint8), 16).shape == (16, 16, 3)
