"""How good generated captions are: BLEU-4, CIDEr-D and retrieval of their own tiles, beside baselines, as one table.

    python tuning/caption_scores.py --archive A --generated VARIANT [...] --checkpoint C [...] --out FOLDER

A is an ingested captioned set, `captions@VARIANT` what `urbancross caption` wrote for it, and C an encoder on frozen
towers that has not seen the judged split: `urbancross pretrain --archive A --captions given --out C` leaves `features`
in A too, from which the nearest training tile is found. Writes FOLDER/caption_scores.json and .md, with a table per
encoder, and prints the latter. An encoder that learnt the very captions of the nearest training tiles favours them: one
that was pretrained on another set is the fairer judge.

Every row is one text per tile, its tile alone being relevant (protocol `field`): texts that several tiles share count
against both. A tile without a generated caption counts as missed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import caption_metrics
import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from urbancross import cli, metrics, storage
from urbancross.errors import ConfigError, UrbanCrossError
from urbancross.models import checkpoints
from urbancross.models.dual_encoder import DualEncoder
from urbancross.storage import Place
from urbancross.tables import read_aligned, table_of

SHUFFLED = ", shuffled among tiles"


@dataclass(frozen=True)
class Tiles:
    """N tiles of one split."""

    references: list[list[str]]
    generated: dict[str, list[str]]  # variant -> a caption per tile, empty where it has none
    features: torch.Tensor  # [N, F], of the frozen image tower


def read_tiles(archive: Place, split: str, references: str, generated: Sequence[str]) -> Tiles:
    """The tiles of a split that have captions to be judged by."""
    given = table_of(archive, "captions", references, "references")
    made = {variant: table_of(archive, "captions", variant, "generated") for variant in generated}
    features = table_of(archive, "features", None, "features")
    columns = {"tiles": ["split"], features: ["image"]} | {table: ["captions"] for table in (given, *made.values())}
    texts: list[list[str]] = []
    captions: dict[str, list[str]] = {variant: [] for variant in made}
    seen: list[list[float]] = []
    for name in storage.shards(archive / "tiles"):
        tables = read_aligned(archive, columns, name)
        splits, told = tables["tiles"]["split"].to_pylist(), tables[given]["captions"].to_pylist()
        rows = [i for i, inside in enumerate(splits) if inside == split and told[i]]
        texts += [told[i] for i in rows]
        seen += tables[features]["image"].take(pa.array(rows, pa.int64())).to_pylist()
        for variant, table in made.items():
            lines = tables[table]["captions"].to_pylist()
            captions[variant] += [lines[i][0] if lines[i] else "" for i in rows]
    if not texts:
        raise ConfigError(f"{archive} has no tile of split {split} with captions@{references}; choose another --split")
    if None in seen:
        raise ConfigError(f"{archive / features} lacks tiles of split {split}; make it with urbancross pretrain")
    return Tiles(texts, captions, torch.tensor(seen))


def load_judge(archive: Place, checkpoint: str) -> DualEncoder:
    """An encoder whose heads fit the archive's features."""
    model, features = checkpoints.resolve(checkpoint), table_of(archive, "features", None, "features")
    if not features.startswith(f"features@{model.towers}-"):
        raise ConfigError(
            f"{checkpoint} has other towers than {archive / features}; give one of pretrain --train heads"
        )
    judge = checkpoints.load(model, "cpu")
    judge.bank = None  # tiles are judged by stored features, plainly
    return judge


def nearest_captions(judged: Tiles, train: Tiles) -> list[str]:
    """The first caption of the training tile that looks most alike to the frozen image tower, by cosine."""
    likeness = functional.normalize(judged.features, dim=1) @ functional.normalize(train.features, dim=1).T
    return [train.references[int(i)][0] for i in likeness.argmax(dim=1)]


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """Every text at another tile's place."""
    order = np.random.default_rng(seed).permutation(len(texts))
    moved = [""] * len(texts)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        moved[here] = texts[there]
    return moved


@torch.inference_mode()
def retrieval(encoder: DualEncoder, features: torch.Tensor, texts: Sequence[str], seed: int) -> dict[str, Any]:
    """How well each text finds its own tile among all, and each tile its text."""
    tiles = encoder.heads["image"](features).numpy()
    vectors = encoder.encode_texts(texts)
    vectors[[not text for text in texts]] = np.nan  # counts as missed
    return metrics.evaluate_retrieval(tiles, vectors, np.arange(len(texts)), "field", seed=seed)


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    ways = {"text to tile": "text_to_tile", "tile to text": "tile_to_text"}
    heads = ["captions", "distinct", "BLEU-4, %", "CIDEr-D", *(f"{way} R@1 / 5 / 10, %" for way in ways), "mR, %"]
    lines = [heads, ["---"] * len(heads)]
    for name, row in rows.items():
        likeness = [
            _span(row[score]["value"], row[score]["ci95"], scale, digits) if score in row else ""
            for score, scale, digits in (("BLEU-4", 100, 1), ("CIDEr-D", 1, 2))
        ]
        recalls = [" / ".join(f"{100 * value:.1f}" for value in row[way].values()) for way in ways.values()]
        mean = _span(row["mR"], row["ci95"]["mR"], 100, 1)
        lines.append([name, f"{row['distinct']:,}", *likeness, *recalls, mean])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _span(value: float, interval: Sequence[float], scale: float, digits: int) -> str:
    low, high = interval
    return f"{scale * value:.{digits}f} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--generated", nargs="+", required=True, help="variants of the captions table to judge")
    parser.add_argument("--references", default="given", help="the variant that people wrote")
    parser.add_argument("--checkpoint", nargs="+", required=True, help="encoders that have not seen the judged split")
    parser.add_argument("--split", default="valid", help="what is judged")
    parser.add_argument("--train-split", default="train", help="where the nearest tile is looked for")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    archive = storage.archive(told.archive)
    judges = {name: load_judge(archive, name) for name in told.checkpoint}
    judged = read_tiles(archive, told.split, told.references, told.generated)
    train = read_tiles(archive, told.train_split, told.references, [])

    texts: dict[str, list[str]] = {}
    for variant, captions in judged.generated.items():
        texts |= {variant: captions, variant + SHUFFLED: shuffled(captions, told.seed)}
    texts["nearest training tile's"] = nearest_captions(judged, train)
    rows: dict[str, dict[str, Any]] = {
        name: caption_metrics.scores(captions, judged.references, seed=told.seed) for name, captions in texts.items()
    }
    person = "a person's (the first of five)"  # which is among the references
    texts[person], rows[person] = [lines[0] for lines in judged.references], {}
    for name, captions in texts.items():
        rows[name] |= {"distinct": len(set(captions)), "missing": captions.count("")}
    tables = {
        judge: {name: row | retrieval(encoder, judged.features, texts[name], told.seed) for name, row in rows.items()}
        for judge, encoder in judges.items()
    }
    page = "\n\n".join(f"Judged by {Path(judge).name}:\n\n{markdown(found)}" for judge, found in tables.items())
    print(f"{len(judged.references):,} tiles of {told.split}, intervals of 95 % over tiles.\n\n{page}")
    arguments = vars(told) | {"out": str(told.out)}
    storage.write_json(told.out / "caption_scores.json", {"arguments": arguments, "judges": tables})
    storage.replace(told.out / "caption_scores.md", (page + "\n").encode())


if __name__ == "__main__":
    try:
        main()
    except UrbanCrossError as error:
        cli.fail("tuning/caption_scores.py", error, cli.BAD_INPUT)
