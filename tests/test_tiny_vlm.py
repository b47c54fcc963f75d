"""The tests' own vision-language model."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_vlm import CONTEXT, build
from transformers import AutoConfig, AutoProcessor

from urbancross.captions import prompts


def test_the_same_seed_gives_the_same_folder_and_another_seed_other_weights(tmp_path: Path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        build(tmp_path / name, seed)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert "model.safetensors" in files
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert not all(torch.equal(one[key], other[key]) for key in one)
    assert sum(weights.numel() for weights in one.values()) < 500_000


def test_the_chat_template_keeps_instructions_before_and_tags_after_the_image(tmp_path: Path):
    build(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    asked = prompts.messages(b"", prompts.prompt(["building=church"], []))
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    parts = [prompts.INSTRUCTIONS, "<|image_pad|>", "building of church", "assistant"]
    assert sorted(parts, key=text.index) == parts
    assert AutoConfig.from_pretrained(tmp_path).text_config.max_position_embeddings == CONTEXT >= 2048


def test_its_vocabulary_writes_every_byte(tmp_path: Path):
    build(tmp_path)
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    text = '{"description":"Fünf Häuser, 三 \t~"}'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
