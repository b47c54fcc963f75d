"""Models by name and by folder: the right weights, whole, or one line that says why not."""

import copy
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from urbancross import storage
from urbancross.errors import CheckpointError, ConfigError, StorageError
from urbancross.models import checkpoints, starter
from urbancross.models.dual_encoder import DualEncoder, square


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return checkpoints.load(checkpoints.resolve("starter", 16))


@pytest.fixture(scope="module")
def saved(encoder: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "c"
    with storage.publish_folder(folder) as temporary:
        checkpoints.save(encoder, temporary, "starter", "towers-digest", {"seed": 0}, {"model": "m"})
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


def test_a_model_on_s3_is_fetched_once_and_there_only_when_it_is_whole(
    encoder: DualEncoder, saved: Path, bucket: Any, s3_proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = bucket / "models" / "c"

    def publish() -> None:
        with storage.publish_folder(place, mark=checkpoints.DESCRIPTION) as temporary:
            shutil.copytree(saved, temporary, dirs_exist_ok=True)

    s3_proxy.rules.append(lambda request: "expired" if "model.safetensors" in request else None)
    with pytest.raises(StorageError, match="credentials"):
        publish()
    s3_proxy.rules.clear()
    with pytest.raises(CheckpointError, match=r"is no checkpoint: checkpoint\.json, model\.safetensors missing"):
        checkpoints.resolve(str(place))
    publish()
    with pytest.raises(ConfigError, match="exists already"):
        publish()
    model = checkpoints.resolve(str(place))
    assert (model.place, model.variant) == (str(place), "c")
    asked = len(s3_proxy.seen)
    tiles = [np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)]
    np.testing.assert_array_equal(checkpoints.load(model).encode_images(tiles), encoder.encode_images(tiles))
    fetched = len(s3_proxy.seen)
    assert fetched > asked
    checkpoints.load(model)
    assert len(s3_proxy.seen) == fetched
    shutil.rmtree(tmp_path / "urbancross")
    storage.replace(place / checkpoints.WEIGHTS, (saved / checkpoints.WEIGHTS).read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="is not of its checkpoint.json; copy the checkpoint again"):
        checkpoints.load(model)


def test_segments_are_seen_by_the_tower_before_it_learnt_also_by_the_model_that_comes_back(tmp_path: Path):
    encoder = checkpoints.load(checkpoints.resolve("starter", 16))
    crops = [np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)]
    before, tile = encoder.encode_segments(crops), encoder.encode_images(crops)
    encoder.keep_segment_tower()
    with torch.no_grad():
        for parameter in encoder.unlock_image_tower():
            parameter += 0.01 * torch.randn_like(parameter)
    assert not np.allclose(encoder.encode_images(crops), tile, atol=1e-3)
    np.testing.assert_array_equal(encoder.encode_segments(crops), before)
    assert not any(parameter.requires_grad for parameter in encoder.segment_tower.parameters())
    folder = tmp_path / "c"
    with storage.publish_folder(folder) as temporary:
        checkpoints.save(encoder, temporary, "starter", None, {}, {})
    again = checkpoints.load(checkpoints.resolve(str(folder)))
    np.testing.assert_array_equal(again.encode_segments(crops), before)
    np.testing.assert_array_equal(again.encode_images(crops), encoder.encode_images(crops))
    again.see_segments_as_tiles()
    np.testing.assert_array_equal(again.encode_segments(crops), again.encode_images(crops))


def test_a_checkpoint_that_is_not_whole_is_named(saved: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is no checkpoint: checkpoint.json, model.safetensors missing"):
        checkpoints.resolve(str(tmp_path / "empty"))
    cut = tmp_path / "cut"
    shutil.copytree(saved, cut)
    for end in (5000, -1):
        (cut / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:end])
        with pytest.raises(CheckpointError, match=r"cut/model.safetensors cannot be loaded"):
            checkpoints.resolve(str(cut))  # before anything is loaded, or Ray begun


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


def test_weights_of_the_package_lie_under_the_names_that_mean_the_same(encoder: DualEncoder):
    given = torch.load(starter.weight_files()[0], weights_only=True)
    held = encoder.towers.visual.trunk.state_dict()
    for theirs, ours in (
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_blocks.0._depthwise_conv.weight", "blocks.0.0.conv_dw.weight"),
        ("_blocks.5._bn1.running_var", "blocks.3.0.bn2.running_var"),
        ("_conv_head.weight", "conv_head.weight"),
        ("_bn1.running_mean", "bn2.running_mean"),
    ):
        assert torch.equal(held[ours], given[theirs]), ours


def test_tokens_are_no_longer_than_the_longest_text():
    tokenize = starter.Tokenizer()
    short, both = tokenize(["a lake"]), tokenize(["a lake", "boats in a harbour"])
    assert short.shape == (1, 4)  # the two words between a beginning and an end
    assert both.shape == (2, 6)
    assert both[0].tolist() == [*short[0].tolist(), 0, 0]
    assert tokenize([""]).shape == (1, 2)
    assert tokenize(["lake " * 500]).shape == (1, starter.CONTEXT_LENGTH)


def test_padding_changes_no_vector(encoder: DualEncoder):
    alone = encoder.text_features(["a lake"])
    beside = encoder.text_features(["a lake", "a very long line about boats in the harbour of a large city"])[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


def test_vectors_have_length_one(encoder: DualEncoder):
    tiles = [np.full((9, 9, 3), value, np.uint8) for value in (0, 255)]
    for vectors in (encoder.encode_images(tiles), encoder.encode_texts(["a", ""])):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "error", "wanted"),
    [
        ('{"base": "starter", "width": 16, "fingerprint": "x"}', CheckpointError, "lacks 'towers'"),
        ("[]", CheckpointError, r"checkpoint\.json lacks"),
        ('{"base": ', ConfigError, r"checkpoint .*checkpoint\.json is not JSON"),
    ],
)
def test_a_description_that_says_too_little_is_named(tmp_path: Path, text: str, error: type, wanted: str):
    (tmp_path / "checkpoint.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(error, match=wanted):
        checkpoints.resolve(str(tmp_path))


def test_training_that_leaves_the_towers_alone_keeps_their_digest(encoder: DualEncoder, tmp_path: Path):
    told = {}
    for name, towers in (("heads", "frozen"), ("image", None)):
        (tmp_path / name).mkdir()
        checkpoints.save(encoder, tmp_path / name, "starter", towers, {"seed": 3}, {"model": "m"})
        told[name] = checkpoints.resolve(str(tmp_path / name))
    assert told["heads"].towers == "frozen"
    assert told["image"].towers == told["image"].fingerprint == told["heads"].fingerprint
    assert storage.read_json(tmp_path / "heads" / "checkpoint.json", "checkpoint")["settings"] == {"seed": 3}


def test_a_square_keeps_the_middle_of_a_longer_picture():
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = np.arange(48).reshape(4, 4, 3)
    np.testing.assert_array_equal(square(wide, 4), wide[:, 4:8])
    np.testing.assert_array_equal(square(wide.transpose(1, 0, 2), 4), wide[:, 4:8].transpose(1, 0, 2))
    assert square(wide[:, 4:8], 4).base is wide  # what fits already is not touched


@pytest.mark.parametrize("shape", [(37, 111), (60, 80), (300, 41), (8, 500)])
def test_a_square_is_the_resized_pictures_middle(shape: tuple[int, int]):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    scale = 32 / min(shape)
    size = (max(32, round(shape[1] * scale)), max(32, round(shape[0] * scale)))
    whole = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - 32) // 2, (size[0] - 32) // 2
    difference = square(picture, 32).astype(int) - whole[top : top + 32, left : left + 32]
    assert abs(difference).max() <= 1  # of 255: the same up to rounding


def test_the_square_of_a_thin_strip_takes_no_more_memory_than_the_square():
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 200_000  # kB; the whole strip, resized, is 1.2 GB
    assert square(np.zeros((1, 8192, 3), np.uint8), 224).shape == (224, 224, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < limit


def test_a_tag_that_was_trained_with_quick_gelu_is_rebuilt_with_it(tmp_path: Path):
    name = "ViT-B-32/openai"
    rebuilt = checkpoints._build(checkpoints.Model(name, name, None, tmp_path, "", ""), dropout=0.0, seed=0)
    assert any(type(module).__name__ == "QuickGELU" for module in rebuilt.towers.modules())
    assert not any(isinstance(module, torch.nn.GELU) for module in rebuilt.towers.modules())


def test_with_eight_views_a_tile_and_its_turns_and_flips_are_one_tile(encoder: DualEncoder, tmp_path: Path):
    tile = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    tile[:90, 40:200] //= 4  # it has an up
    turns = [tile, np.rot90(tile), np.rot90(tile, 2)[:, ::-1]]
    one = encoder.encode_images(turns)
    assert abs(one[0] - one[1]).max() > 1e-3
    many = copy.deepcopy(encoder)
    many.views.fill_(8)
    checkpoints.save(many, tmp_path, "starter", None, {}, {})
    again = checkpoints.load(checkpoints.resolve(str(tmp_path)))
    seen = again.encode_images(turns)
    np.testing.assert_allclose(seen[1:], seen[[0, 0]], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, atol=1e-5)
    every = [side for flip in (tile, tile[:, ::-1]) for side in (np.rot90(flip, k) for k in range(4))]
    mean = encoder.encode_images(every).mean(axis=0)
    np.testing.assert_allclose(seen[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_checkpoint_from_before_views_sees_each_tile_once(saved: Path, tmp_path: Path):
    folder = shutil.copytree(saved, tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    del weights["views"]
    save_file(weights, folder / "model.safetensors")
    assert checkpoints.load(checkpoints.resolve(str(folder))).views == 1


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda: no CUDA device in this process; give --device cpu"):
        checkpoints.load(checkpoints.resolve("starter"), "cuda")


def test_an_encoder_says_which_texts_it_reads_to_their_end():
    encoder = checkpoints.load(checkpoints.resolve("starter"))
    assert encoder.reads_whole("A lake.")
    assert encoder.reads_whole("lake " * 62)  # and the two marks at its ends
    assert not encoder.reads_whole("lake " * 63)
    assert encoder.reads_whole("x" * 30 + " a lake with trees around it, seen from above on a summer day")
