"""Teach a small vision-language model to caption tiles, from captions that people wrote; one thread of a CPU.

    python tuning/captioner.py --captions rsicd/captions.jsonl --out FOLDER [--minutes 60] [--seed 0]

Reads the tiles of split `train` and no others; some of them are held out, and the epoch that does best on those is
kept. The tower stays frozen, so its features are computed once, for several flips and turns of every tile: a satellite
tile has no up. FOLDER is a plain Hugging Face model: `urbancross caption --engine vllm --model FOLDER`.
"""

import argparse
import copy
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captioner_answers import answers
from captioner_model import IMAGE, TOKENS_PER_TILE, model_of, processor_of, save, tokenizer_of
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, FastVlmForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from urbancross import cli, storage
from urbancross.captions import prompts
from urbancross.errors import ConfigError, UrbanCrossError
from urbancross.models import starter
from urbancross.models.dual_encoder import square
from urbancross.tiles import decode

VOCABULARY = 2048
HELD_OUT = 500  # tiles
TURNS = 8  # flips and quarter turns of a square
ROOM_FOR_THE_END = 0.95  # of the time that is given; the rest loads, judges and saves


@dataclass(frozen=True)
class Tile:
    image: Path
    answers: dict[str, float]  # answer -> weight, summing to 1


@dataclass(frozen=True)
class Prompt:
    """Token ids around the image: the same for every tile. The last one is left to the answers, as their first."""

    before: Tensor  # [P]
    after: Tensor  # [Q]
    last: int


@dataclass(frozen=True)
class Batch:
    """B tiles and their M answers of at most L tokens."""

    seen: Tensor  # [B, 49, F], what the tower says of the tiles
    tile: Tensor  # [M], the row of `seen` an answer belongs to
    tokens: Tensor  # [M, L + 1], the prompt's last token, the answer, the end; padded with -100
    weights: Tensor  # [M]


def read_tiles(captions: Path, split: str) -> list[Tile]:
    """The tiles of a split of a captioned set that have an answer."""
    rows = [json.loads(line) for line in captions.read_text().splitlines() if line.strip()]
    tiles = [
        Tile(captions.parent / row["image"], answers(row["captions"])) for row in rows if row.get("split") == split
    ]
    tiles = [tile for tile in tiles if tile.answers]
    if len(tiles) < 2:
        raise ConfigError(f"{captions} has {len(tiles)} captioned tiles of split {split}; wanted thousands")
    return tiles


def prompt_of(processor: LlavaProcessor) -> Prompt:
    """What `urbancross caption --no-tags` asks, through the model's own chat template."""
    conversation = prompts.messages(b"", prompts.prompt([], []))
    text = str(processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
    before, after = (processor.tokenizer(part)["input_ids"] for part in text.split(IMAGE))
    return Prompt(torch.tensor(before), torch.tensor(after[:-1]), after[-1])


def turned(image: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight flips and quarter turns of `[H, W, 3]`; the first is the image itself."""
    return np.rot90(image[:, ::-1] if turn >= 4 else image, turn % 4)


@torch.no_grad()
def features_of(model: FastVlmForConditionalGeneration, tiles: Sequence[Tile], turns: np.ndarray) -> Tensor:
    """What the tower says of each tile, turned: [N, V, 49, F] bfloat16.

    Args:
        turns: [N, V], which of the eight.
    """
    tower = model.model.vision_tower.eval().to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values)[:, None, None] for values in (starter.IMAGE_MEAN, starter.IMAGE_STD))
    seen = torch.empty(*turns.shape, TOKENS_PER_TILE, starter.IMAGE_WIDTH, dtype=torch.bfloat16)
    for i, tile in enumerate(tiles):
        image = square(decode(tile.image.read_bytes()), starter.IMAGE_PX)
        views = torch.from_numpy(np.stack([turned(image, turn) for turn in turns[i]])).permute(0, 3, 1, 2)
        pixels = ((views.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen[i] = tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        if i % 1000 == 999:
            print(f"features of {i + 1:,} of {len(tiles):,} tiles, {cpu_minutes():.1f} CPU minutes", flush=True)
    return seen


def stored_features(
    file: Path | None, model: FastVlmForConditionalGeneration, tiles: Sequence[Tile], turns: np.ndarray
) -> tuple[Tensor, float]:
    """`features_of`, kept in a file for the next run; and the CPU minutes that they took, now or then."""
    wanted = storage.digest_text("\n".join(tile.image.name for tile in tiles) + str(turns.tolist()))
    if file is not None and file.exists():
        with safe_open(file, "pt") as stored:
            if stored.metadata()["of"] != wanted:
                raise ConfigError(f"{file} holds features of other tiles, turns or another seed; remove it")
            return stored.get_tensor("seen"), float(stored.metadata()["cpu_minutes"])
    before = cpu_minutes()
    seen = features_of(model, tiles, turns)
    spent = cpu_minutes() - before
    if file is not None:
        save_file({"seen": seen}, file, {"of": wanted, "cpu_minutes": str(spent)})
    return seen, 0.0


def batch_of(prompt: Prompt, tokenizer: PreTrainedTokenizerFast, tiles: Sequence[Tile], seen: Tensor) -> Batch:
    texts = [(row, text, weight) for row, tile in enumerate(tiles) for text, weight in tile.answers.items()]
    end = tokenizer.eos_token_id
    tokens = [torch.tensor([prompt.last, *ids, end]) for ids in tokenizer([text for _, text, _ in texts])["input_ids"]]
    return Batch(
        seen,
        torch.tensor([row for row, _, _ in texts]),
        torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-100),
        torch.tensor([weight for _, _, weight in texts]),
    )


def answer_loss(model: FastVlmForConditionalGeneration, prompt: Prompt, batch: Batch) -> Tensor:
    """Mean loss of a token of the answers, each answer by its weight.

    The instructions are read once, and each image once for all its answers: keys and values are passed on, with their
    gradient, as a server with a prefix cache would do.
    """
    language, embed = model.model.language_model, model.get_input_embeddings()
    tiles = len(batch.seen)
    read = DynamicCache()
    language(inputs_embeds=embed(prompt.before)[None], past_key_values=read, use_cache=True)
    read.batch_repeat_interleave(tiles)
    image = model.model.multi_modal_projector(batch.seen.float())
    asked = embed(prompt.after).expand(tiles, -1, -1)
    language(inputs_embeds=torch.cat([image, asked], dim=1), past_key_values=read, use_cache=True)
    read.batch_select_indices(batch.tile)
    given, wanted = batch.tokens[:, :-1].clamp(min=0), batch.tokens[:, 1:]
    hidden = language(inputs_embeds=embed(given), past_key_values=read, use_cache=True).last_hidden_state
    losses = functional.cross_entropy(
        model.lm_head(hidden).float().transpose(1, 2), wanted, ignore_index=-100, reduction="none"
    )  # [M, L]
    weights = batch.weights[:, None] * (wanted >= 0)
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def held_out_loss(model: FastVlmForConditionalGeneration, prompt: Prompt, batches: Sequence[Batch]) -> float:
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return float(np.mean([answer_loss(model, prompt, batch).item() for batch in batches]))


def learn(
    model: FastVlmForConditionalGeneration,
    prompt: Prompt,
    epochs: Iterator[Iterator[Batch]],
    steps: int,
    held_out: Sequence[Batch],
    told: argparse.Namespace,
    minutes: float,
) -> None:
    """Train decoder and projector, and leave the weights of the epoch that did best on the held-out tiles."""
    model.model.vision_tower.requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=told.lr, betas=(0.9, 0.98), weight_decay=told.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, told.lr, total_steps=steps + 1, pct_start=0.08)
    best, kept = float("inf"), copy.deepcopy(model.state_dict())
    for epoch, batches in enumerate(epochs, start=1):
        model.train()
        model.model.vision_tower.eval()
        losses = []
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = answer_loss(model, prompt, batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            if cpu_minutes() > minutes:
                break
        judged = held_out_loss(model, prompt, held_out)
        if judged < best:
            best, kept = judged, copy.deepcopy(model.state_dict())
        print(
            f"epoch {epoch} of {told.epochs}: loss {np.mean(losses):.3f}, held out {judged:.3f},"
            f" {cpu_minutes():.1f} CPU minutes",
            flush=True,
        )
        if cpu_minutes() > minutes:
            print(f"stopped for --minutes {told.minutes:g}")
            break
    model.load_state_dict(kept)


def cpu_minutes() -> float:
    """Of this process and of all that it started, so far."""
    spent = os.times()
    return (spent.user + spent.system + spent.children_user + spent.children_system) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=Path, required=True, help="captions.jsonl of a captioned set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--features", type=Path, help="file that keeps the tower's features for the next run (GBs)")
    parser.add_argument("--minutes", type=float, default=60, help="CPU minutes in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--views", type=int, default=4, help="flips and turns of each tile that are learnt from")
    parser.add_argument("--batch", type=int, default=32, help="tiles a step")
    parser.add_argument("--width", type=int, default=192, help="of the decoder")
    parser.add_argument("--layers", type=int, default=3, help="of the decoder")
    parser.add_argument("--dropout", type=float, default=0.1, help="on attention weights")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    told = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(told.seed)
    rng = np.random.default_rng(told.seed)

    tiles = read_tiles(told.captions, "train")
    rng.shuffle(tiles)
    tokenizer = tokenizer_of(
        [*_prompt_texts(len(tiles)), *(text for tile in tiles for text in tile.answers)], VOCABULARY
    )
    processor = processor_of(tokenizer)
    prompt = prompt_of(processor)
    model = model_of(tokenizer, told.width, told.layers, told.dropout)
    decoder = sum(p.numel() for name, p in model.named_parameters() if "vision_tower" not in name)
    print(f"{len(tiles):,} tiles; {model.num_parameters():,} parameters, {decoder:,} of them learn", flush=True)

    spared = min(HELD_OUT, len(tiles) // 4)
    turns = np.stack([rng.permutation(TURNS)[: told.views] for _ in tiles])
    turns[:spared, 0] = 0  # the held-out tiles are judged as they are
    seen, spent_before = stored_features(told.features, model, tiles, turns)

    def batches(rows: np.ndarray, views: np.ndarray) -> Iterator[Batch]:
        for i in range(0, len(rows), told.batch):
            part = rows[i : i + told.batch]
            yield batch_of(prompt, tokenizer, [tiles[row] for row in part], seen[part, views[i : i + told.batch]])

    def epochs() -> Iterator[Iterator[Batch]]:
        for _ in range(told.epochs):
            rows = spared + rng.permutation(len(tiles) - spared)
            yield batches(rows, rng.integers(told.views, size=len(rows)))

    steps = told.epochs * -(-(len(tiles) - spared) // told.batch)
    held_out = list(batches(np.arange(spared), np.zeros(spared, dtype=int)))
    learn(model, prompt, epochs(), steps, held_out, told, told.minutes * ROOM_FOR_THE_END - spent_before)
    save(told.out, model, processor)
    print(f"wrote {told.out}; {cpu_minutes() + spent_before:.1f} CPU minutes in all, one thread of {_cpu()}")


def _prompt_texts(times: int) -> list[str]:
    """The prompt's parts, so often that its words become tokens."""
    return [prompts.INSTRUCTIONS, prompts.prompt([], [])] * times


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    told = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", told.read_text()) if told.exists() else []
    return names[0] if names else platform.processor() or "an unknown CPU"


if __name__ == "__main__":
    try:
        main()
    except UrbanCrossError as error:
        cli.fail("tuning/captioner.py", error, cli.BAD_INPUT)
