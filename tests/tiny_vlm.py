"""A vision-language model of random weights for tests: 0.4 million parameters in a plain Qwen2.5-VL folder.

    python tests/tiny_vlm.py FOLDER

Its answers are noise; under a JSON schema they are noise in the right form.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from urbancross.captions import prompts

CONTEXT = 2048
WIDTH, PATCH_PX, IMAGE_PX = 64, 14, 112  # an image becomes 4 x 4 tokens
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path, seed: int = 0) -> None:
    """Write config, weights, tokenizer, processor and chat template; the same seed gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    token_id = words.get_vocab().__getitem__
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": (4 * PATCH_PX) ** 2, "longest_edge": IMAGE_PX**2}, patch_size=PATCH_PX
        ),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=words,
        chat_template=CHAT,
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": CONTEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
            "bos_token_id": token_id(PAD),
            "eos_token_id": token_id(END),
            "pad_token_id": token_id(PAD),
        },
        vision_config={
            "depth": 2,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "patch_size": PATCH_PX,
            "window_size": IMAGE_PX,
            "fullatt_block_indexes": [1],
        },
        image_token_id=token_id(IMAGE),
        video_token_id=token_id(VIDEO),
        vision_start_token_id=token_id(IMAGE_START),
        vision_end_token_id=token_id(IMAGE_END),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token_id(END)
    model.generation_config.pad_token_id = token_id(PAD)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and merges learnt from the instructions, so that every text can be written and the prompt is short."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    marks = [PAD, START, END, IMAGE_START, IMAGE_END, IMAGE, VIDEO]
    answer = json.dumps({"description": "A park.", "land_use": "public", "objects": ["trees"]})
    corpus = [prompts.INSTRUCTIONS, prompts.prompt([], []), *prompts.LAND_USES, answer] * 4
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=marks,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=marks[3:],
        model_max_length=CONTEXT,
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]))
