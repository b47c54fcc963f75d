"""open_clip models from local files: through a checkpoint, and back to plain open_clip."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from learning import OPEN_CLIP, small_open_clip
from safetensors.torch import save_file

from urbancross import storage
from urbancross.errors import CheckpointError, ConfigError
from urbancross.models import checkpoints

TILES = [np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8) for seed in range(3)]
TEXTS = ["a harbour with many boats", "A dense forest.", "lake " * 60]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_open_clip(tmp_path_factory.mktemp("plain") / "small")


def plainly(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tiles and texts as open_clip alone sees them."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    pixels = torch.stack([torch.from_numpy(tile).permute(2, 0, 1) for tile in TILES]).float() / 255
    mean, std = (torch.tensor(OPEN_CLIP["preprocess_cfg"][name])[:, None, None] for name in ("mean", "std"))
    assert list(preprocess.transforms[-1].mean) == OPEN_CLIP["preprocess_cfg"]["mean"]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        v = model.encode_image((pixels - mean) / std, normalize=True)
        u = model.encode_text(tokens, normalize=True)
    return v.numpy(), u.numpy()


def test_a_local_model_sees_what_open_clip_sees(given: Path):
    model = checkpoints.resolve(f"local-dir:{given}")
    assert checkpoints.width_of(model) == 24
    assert checkpoints.image_px_of(model) == 48
    encoder = checkpoints.load(model)
    v, u = plainly(given)
    np.testing.assert_allclose(encoder.encode_images(TILES), v, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), u, atol=1e-5)
    assert encoder.reads_whole(TEXTS[0])
    assert not encoder.reads_whole(TEXTS[2])


def test_what_has_learnt_goes_back_to_plain_open_clip_and_needs_nothing_of_where_it_began(given: Path, tmp_path: Path):
    encoder = checkpoints.load(checkpoints.resolve(f"local-dir:{given}"))
    with torch.no_grad():
        for head in ("image", "text"):
            encoder.heads[head].project.weight += 0.3 * torch.randn(24, 24)
    folder = tmp_path / "learnt"
    with storage.publish_folder(folder) as temporary:
        checkpoints.save(encoder, temporary, "local-dir:/gone", None, {}, {})
    again = checkpoints.load(checkpoints.resolve(str(folder)))
    np.testing.assert_array_equal(again.encode_images(TILES), encoder.encode_images(TILES))
    v, u = plainly(folder)
    np.testing.assert_allclose(encoder.encode_images(TILES), v, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), u, atol=1e-5)
    assert not np.allclose(v, plainly(given)[0], atol=1e-2)


def test_a_model_with_a_centre_is_no_plain_one(given: Path, tmp_path: Path):
    encoder = checkpoints.load(checkpoints.resolve(f"local-dir:{given}"))
    encoder.heads["image"].centre += 0.1
    with storage.publish_folder(tmp_path / "c") as temporary:
        checkpoints.save(encoder, temporary, f"local-dir:{given}", None, {}, {})
    assert not (tmp_path / "c" / "open_clip_model.safetensors").exists()
    again = checkpoints.load(checkpoints.resolve(str(tmp_path / "c")))
    np.testing.assert_array_equal(again.encode_images(TILES), encoder.encode_images(TILES))


def test_an_architecture_takes_weights_from_a_file(given: Path, tmp_path: Path):
    torch.manual_seed(1)
    weights = tmp_path / "weights.safetensors"
    save_file(open_clip.create_model("RN50", pretrained=None).state_dict(), weights)
    model = checkpoints.resolve(f"RN50/{weights}")
    encoder = checkpoints.load(model)
    assert encoder.encode_images(TILES[:1]).shape == (1, 1024)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    assert checkpoints.resolve(f"RN50/{other}").fingerprint != model.fingerprint
    with pytest.raises(CheckpointError, match=r"cannot load the weights of RN50/.*other\.safetensors"):
        checkpoints.load(checkpoints.resolve(f"RN50/{other}"))


def test_a_local_model_has_one_name_from_anywhere_and_a_short_one_for_tables(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(given.parent)
    model = checkpoints.resolve("local-dir:small")
    assert model.place == f"local-dir:{given}"
    assert model.variant == "small"
    (tmp_path / "w.pt").touch()
    monkeypatch.chdir(tmp_path)
    assert checkpoints.resolve("RN50/w.pt").place == f"RN50/{tmp_path}/w.pt"
    assert checkpoints.resolve("RN50/w.pt").variant == "RN50-w"
    assert checkpoints.resolve("ViT-L-14/openai").variant == "ViT-L-14-openai"


def test_a_folder_without_a_model_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--model local-dir:.*: no open_clip_config.json with weights beside it"):
        checkpoints.resolve(f"local-dir:{tmp_path}")
    with pytest.raises(ConfigError, match="neither a checkpoint folder nor a model"):
        checkpoints.resolve(f"RN50/{tmp_path}/absent.pt")
