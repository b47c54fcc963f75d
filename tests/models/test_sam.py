"""Which SAM a checkpoint is, by its shapes; and the file by path or URL."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from small_sam import DEEPER, random_sam

from urbancross.errors import CheckpointError, ConfigError
from urbancross.models import sam as models

BODY = b"the weights" * 1000
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("kind", ["vit_b", "vit_l", "vit_h"])
def test_official_shapes_are_known(kind):
    with torch.device("meta"):
        official = sam_model_registry[kind]()
        state = official.state_dict()
        shape = models.shape_of(state)
        again = models.build(shape)
    assert models.variant_of(models.shape_of(state)) == f"sam-{kind}"
    assert {name: t.shape for name, t in again.state_dict().items()} == {name: t.shape for name, t in state.items()}
    for ours, theirs in zip(again.image_encoder.blocks, official.image_encoder.blocks, strict=True):
        assert ours.window_size == theirs.window_size
        assert ours.attn.num_heads == theirs.attn.num_heads
    assert again.image_encoder.img_size == official.image_encoder.img_size == 1024
    assert again.mask_decoder.transformer.num_heads == official.mask_decoder.transformer.num_heads
    assert again.prompt_encoder.input_image_size == official.prompt_encoder.input_image_size


@pytest.mark.parametrize("ending", ["pth", "wrapped.pth", "safetensors"])
def test_a_small_sam_loads_by_its_shapes_alone(tmp_path, ending):
    sam = random_sam(DEEPER)
    path = tmp_path / f"sam.{ending}"
    if ending == "safetensors":
        save_file(sam.state_dict(), path)
    else:
        torch.save({"model": sam.state_dict()} if "wrapped" in ending else sam.state_dict(), path)
    assert models.shape_of(models.read(path)) == DEEPER
    assert models.variant_of(models.shape_of(models.read(path))) == "sam-64x4"
    loaded = models.load(path)
    image = torch.rand(1, 3, 256, 256)
    torch.testing.assert_close(loaded.image_encoder(image), sam.image_encoder(image))
    assert torch.equal(loaded.pixel_mean, sam.pixel_mean)
    assert torch.equal(loaded.pixel_std, sam.pixel_std)


def test_another_input_side_keeps_positions_and_distances_in_place():
    state = random_sam(DEEPER).state_dict()
    assert {k: v.shape for k, v in models.resized(state, DEEPER, 128).items() if v.shape != state[k].shape} == {
        "image_encoder.pos_embed": (1, 8, 8, 64),
        **{f"image_encoder.blocks.{i}.attn.rel_pos_{axis}": (15, 16) for i in DEEPER.global_blocks for axis in "hw"},
    }
    same = models.resized(state, DEEPER, 256)
    for name, weight in state.items():
        torch.testing.assert_close(same[name], weight, atol=1e-5, rtol=1e-5)


def test_files_that_are_no_sam_say_so(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "text.pth").write_bytes(b"hello\n")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"run": print}, tmp_path / "code.pth")
    state = random_sam(DEEPER).state_dict()
    torch.save(state | {"mask_decoder.iou_token.weight": torch.ones(1, 40)}, tmp_path / "mixed.pth")
    for name, message in (
        ("cut.pth", "cut short"),
        ("text.pth", "cut short"),
        ("cut.safetensors", "cut short"),
        ("other.pth", "no SAM: 'image_encoder.patch_embed.proj.weight' is missing"),
        ("list.pth", "no dictionary of tensors"),
        ("code.pth", "no checkpoint"),
        ("mixed.pth", "does not fit the SAM"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            models.load(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


class Shelf(BaseHTTPRequestHandler):
    """Any path gives BODY, but for /cut (half of it) and /gone (404)."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        gone, cut = "gone" in self.path, "cut" in self.path
        self.send_response(404 if gone else 200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(b"" if gone else BODY[: len(BODY) // 2] if cut else BODY)

    def log_message(self, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Shelf.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def kept(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_url_is_fetched_once(shelf, tmp_path):
    path = models.weights(f"{shelf}/sam.pth", DIGEST)
    assert path.read_bytes() == BODY
    assert path.suffix == ".pth"
    assert kept(tmp_path) == [path]
    assert models.weights(f"{shelf}/sam.pth", DIGEST) == path
    assert len(Shelf.asked) == 1


def test_an_official_name_carries_its_digest(shelf):
    assert models.weights(f"{shelf}/sam_vit_x_{DIGEST[:6]}.pth").read_bytes() == BODY
    with pytest.raises(CheckpointError, match="does not begin with 4b8939"):
        models.weights(f"{shelf}/sam_vit_h_4b8939.pth")


def test_a_url_without_a_digest_is_refused_unasked(shelf):
    with pytest.raises(ConfigError, match="pass --sha256"):
        models.weights(f"{shelf}/sam.pth")
    assert Shelf.asked == []


@pytest.mark.parametrize(("name", "message"), [("cut.pth", "SHA-256"), ("gone.pth", "HTTP 404")])
def test_what_is_not_whole_leaves_nothing_behind(shelf, tmp_path, name, message):
    with pytest.raises(CheckpointError, match=message):
        models.weights(f"{shelf}/{name}", DIGEST[:8])
    assert kept(tmp_path) == []


def test_a_file_spoiled_in_the_cache_is_fetched_again(shelf):
    path = models.weights(f"{shelf}/sam.pth", DIGEST)
    path.write_bytes(b"spoiled")
    assert models.weights(f"{shelf}/sam.pth", DIGEST).read_bytes() == BODY


def test_several_at_once_get_one_whole_file(shelf, tmp_path):
    with ThreadPoolExecutor(6) as pool:
        paths = set(pool.map(lambda _: models.weights(f"{shelf}/sam.pth", DIGEST), range(6)))
    assert [path.read_bytes() for path in paths] == [BODY]
    assert kept(tmp_path) == list(paths)


def test_no_secret_of_a_url_is_told(shelf):
    with pytest.raises(ConfigError) as caught:
        models.weights("https://someone:hunter2@example.com/sam.pth", DIGEST)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(CheckpointError) as failed:
        models.weights(f"{shelf}/gone.pth?signature=hunter2", DIGEST)
    assert "hunter2" not in str(failed.value)


def test_nobody_listening_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        models.weights("http://127.0.0.1:9/sam.pth", DIGEST)


def test_a_local_file_is_checked_against_a_given_digest(tmp_path):
    path = tmp_path / "sam.pth"
    path.write_bytes(BODY)
    assert models.weights(str(path)) == path
    assert models.weights(str(path), DIGEST.upper()) == path
    with pytest.raises(CheckpointError, match="has SHA-256"):
        models.weights(str(path), "0" * 8)
    for wrong in ("xyz", "abc", "xyz" * 5, "0" * 65):
        with pytest.raises(ConfigError, match="hexadecimal"):
            models.weights(str(path), wrong)


def test_weights_of_another_shape_and_weights_that_are_no_numbers_are_refused(tmp_path):
    state = random_sam(DEEPER).state_dict()
    patch = "image_encoder.patch_embed.proj.weight"
    torch.save(state | {patch: state[patch].flatten(1)}, tmp_path / "flat.pth")
    torch.save(state | {patch: state[patch] * float("nan")}, tmp_path / "nan.pth")
    for name, message in (("flat", "no SAM: its tensors have other shapes"), ("nan", "not finite")):
        with pytest.raises(CheckpointError, match=f"{name}.pth: .*{message}"):
            models.load(tmp_path / f"{name}.pth")
    torch.save({f"module.{name}": weights for name, weights in state.items()}, tmp_path / "parallel.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("parallel", "old"):
        assert models.shape_of(models.read(tmp_path / f"{name}.pth")) == DEEPER
    with pytest.raises(ConfigError, match="--input-px 800000: at most 4096"):
        models.load(tmp_path / "old.pth", 800_000)
    with pytest.raises(CheckpointError, match="is a folder"):
        models.weights(str(tmp_path))
    with pytest.raises(ConfigError, match="ftp://.*a path or an http"):
        models.weights("ftp://host/sam.pth")
