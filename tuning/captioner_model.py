"""A small vision-language model that vLLM serves: starter's image tower, two linear maps, a Qwen2 decoder.

The class is Hugging Face's `FastVlmForConditionalGeneration`, the one of the LLaVA family that takes a timm tower; vLLM
serves it through its Transformers backend, which `model_impl="auto"` chooses by itself. A 224 px tile becomes the
7 x 7 vectors that the tower ends in, so 49 tokens.
"""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from urbancross.models import starter

CONTEXT = 2048
PATCH_PX = 32  # of the tile, under each vector of the tower's last feature map
TOKENS_PER_TILE = (starter.IMAGE_PX // PATCH_PX) ** 2
PAD, START, END, IMAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_of(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE vocabulary learnt from texts: every byte can be written, frequent words are one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[PAD, START, END, IMAGE],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, IMAGE],
        model_max_length=CONTEXT,
        extra_special_tokens={"image_token": IMAGE},
    )


def processor_of(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Tiles as `starter` sees them: the shorter side 224 px, the middle cut out, its own mean and deviation."""
    side = starter.IMAGE_PX
    pixels = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(starter.IMAGE_MEAN),
        image_std=list(starter.IMAGE_STD),
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="full",
        chat_template=CHAT,
        image_token=IMAGE,
    )


def model_of(
    tokenizer: PreTrainedTokenizerFast, width: int = 192, layers: int = 3, dropout: float = 0.0, pretrained: bool = True
) -> FastVlmForConditionalGeneration:
    """The model with a decoder of random weights; seed torch before.

    Args:
        width: of the decoder.
        dropout: on attention weights, while learning.
        pretrained: False leaves the tower at random too.
    """
    token_id = tokenizer.get_vocab().__getitem__
    config = FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "efficientnet_lite0",
            "hidden_size": starter.IMAGE_WIDTH,
            "do_pooling": False,
            "model_args": {"bn_eps": 1e-3},  # as the weights were trained
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "num_key_value_heads": width // 64,
            "max_position_embeddings": CONTEXT,
            "attention_dropout": dropout,
            "bos_token_id": None,
            "eos_token_id": token_id(END),
            "pad_token_id": token_id(PAD),
            "tie_word_embeddings": True,
        },
        image_token_index=token_id(IMAGE),
        tie_word_embeddings=True,
    )
    model = FastVlmForConditionalGeneration(config)
    if pretrained:
        tower = model.model.vision_tower.timm_model
        towers: Any = starter.towers()
        tower.load_state_dict(towers.visual.trunk.state_dict())
    model.generation_config.eos_token_id = token_id(END)
    model.generation_config.pad_token_id = token_id(PAD)
    return model


def save(folder: Path, model: FastVlmForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write the model's folder in one step: a folder of that name is whole, and replaces an older one."""
    folder = Path(folder)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
