"""The captioner's training: what it learns from, its loss, and the folder it leaves."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import captioner
import numpy as np
import pytest
import torch
from captioner_answers import answer_text
from captioner_model import model_of, processor_of, tokenizer_of
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from urbancross.captions import prompts
from urbancross.errors import ConfigError


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Eight tiles of noise, one of them not for training."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        told = ["many boats are in a port .", "a pond near trees ."][: 1 + i % 2] * (2 - i % 2)
        lines.append({"image": f"{i}.png", "captions": told, "split": "valid" if i == 7 else "train"})
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_only_tiles_of_the_split_are_read_and_equal_captions_once(captions: Path):
    tiles = captioner.read_tiles(captions, "train")
    assert [tile.image.name for tile in tiles] == [f"{i}.png" for i in range(7)]
    assert [list(tile.answers.values()) for tile in tiles[:2]] == [[1.0], [0.5, 0.5]]
    with pytest.raises(ConfigError, match="0 captioned tiles of split test"):
        captioner.read_tiles(captions, "test")


def test_a_square_is_turned_in_eight_ways():
    image = np.arange(12).reshape(2, 2, 3)
    ways = [captioner.turned(image, turn) for turn in range(captioner.TURNS)]
    assert (ways[0] == image).all()
    assert len({way.tobytes() for way in ways}) == 8


def test_the_loss_with_shared_prompts_is_that_of_each_answer_on_its_own(captions: Path):
    torch.manual_seed(0)
    tiles = captioner.read_tiles(captions, "train")[:2]
    tokenizer = tokenizer_of([text for tile in tiles for text in tile.answers], 300)
    processor = processor_of(tokenizer)
    prompt = captioner.prompt_of(processor)
    model = model_of(tokenizer, width=64, layers=2, pretrained=False).eval()
    text = processor.apply_chat_template(
        prompts.messages(b"", prompts.prompt([], [])), tokenize=False, add_generation_prompt=True
    )
    images = [Image.open(tile.image).convert("RGB") for tile in tiles]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = model.model.vision_tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        together = captioner.answer_loss(model, prompt, captioner.batch_of(prompt, tokenizer, tiles, seen)).item()
        losses, weights = 0.0, 0.0
        for image, tile in zip(images, tiles, strict=True):
            for answer, weight in tile.answers.items():
                whole = processor(images=[image], text=text + answer + "<|im_end|>", return_tensors="pt")
                asked = processor(images=[image], text=text, return_tensors="pt")["input_ids"].shape[1]
                labels = whole["input_ids"].clone()
                labels[:, :asked] = -100
                tokens = labels.shape[1] - asked
                losses += weight * tokens * model(**whole, labels=labels).loss.item()
                weights += weight * tokens
    assert together == pytest.approx(losses / weights, rel=1e-4)


def test_features_are_kept_for_the_next_run_and_refused_for_other_tiles(captions: Path, tmp_path: Path):
    torch.manual_seed(0)
    tiles = captioner.read_tiles(captions, "train")[:2]
    model = model_of(tokenizer_of(["a"], 261), width=64, layers=1, pretrained=False)
    turns, file = np.array([[0, 3], [1, 6]]), tmp_path / "features.safetensors"
    seen, _ = captioner.stored_features(file, model, tiles, turns)
    again, spent = captioner.stored_features(file, model, tiles, turns)
    assert torch.equal(seen, again)
    assert spent > 0
    assert not torch.equal(seen[:, 0], seen[:, 1])
    with pytest.raises(ConfigError, match="other tiles"):
        captioner.stored_features(file, model, tiles, turns[::-1])


def test_a_run_leaves_a_whole_model_and_takes_an_older_one_s_place(
    captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "model"
    out.mkdir()
    (out / "old").touch()
    small = ["--epochs", "1", "--views", "1", "--batch", "2", "--width", "64", "--layers", "1"]
    monkeypatch.setattr(sys, "argv", ["captioner.py", "--captions", str(captions), "--out", str(out), *small])
    captioner.main()
    assert "epoch 1 of 1: loss" in capsys.readouterr().out
    assert {"config.json", "generation_config.json", "chat_template.jinja", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in out.iterdir()
    }
    assert not (out / "old").exists()
    assert not list(tmp_path.glob("*.unfinished"))
    processor, model = AutoProcessor.from_pretrained(out), AutoModelForImageTextToText.from_pretrained(out)
    assert model.config.vision_config.model_args == {"bn_eps": 1e-3}
    answer = answer_text("Fünf.", "water", ["boat"])
    assert processor.tokenizer.decode(processor.tokenizer(answer)["input_ids"]) == answer
