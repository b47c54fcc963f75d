"""How often is `nothing seems to match` right, and how often wrong, on an archive whose tiles are named by their class?

    python benchmarks/nothing_matches.py --archive A [--embeddings NAME] [--split valid]

Tiles are called `.../CLASS_number`, as those of RSICD. Texts are the first captions of the split's tiles. Wrong: the
archive as it is, half of the texts set the threshold, the others are told. Right: every class in turn is taken out of
the archive, and the texts about it are asked; and texts about what no satellite sees. `ten` is what `search` says;
`one` judges by the best tile's score alone.
"""

import argparse
import re

import numpy as np

from urbancross import storage, tables
from urbancross.archive import Archive
from urbancross.index.doubt import TILES, Calibration

ELSEWHERE = [
    *("a plate of pasta", "a portrait of a woman", "a cat on a sofa", "a page of handwriting", "an x-ray of a chest"),
    *(
        "a cup of coffee",
        "a dog catching a frisbee",
        "a bedroom with a lamp",
        "sheet music",
        "a birthday cake with candles",
    ),
    *("a screenshot of an email", "a guitar", "people dancing at a wedding", "a butterfly on a flower", "a spoon"),
    *("the inside of a church", "a cartoon of a robot", "a bowl of soup", "a chess board", "a pair of shoes"),
    *("a man reading a newspaper", "a bottle of wine", "a kitchen sink", "a child's drawing", "a bunch of bananas"),
    *("a keyboard and a mouse", "a hand holding a pen", "a goldfish in a bowl", "a hotel lobby", "a shelf of books"),
]
FEWEST = 5  # texts of a class


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--embeddings")
    parser.add_argument("--split", default="valid")
    told = parser.parse_args()
    archive = Archive(told.archive, embeddings=told.embeddings, indexed=False)
    captions_table = tables.table_of(archive.place, "captions", None, "captions")
    vectors, classes, texts, of_texts = [], [], [], []
    for name in storage.shards(archive.place / archive.table):
        columns = {"tiles": ["split"], captions_table: ["captions"], archive.table: ["vector"]}
        shard = tables.read_aligned(archive.place, columns, name)
        rows = zip(*(shard[table].to_pylist() for table in columns), strict=True)
        for tile, captions, embedding in rows:
            kind = re.sub(r"_?\d+$", "", tile["tile_id"].rpartition("/")[2].partition(".")[0])
            vectors.append(embedding["vector"])
            classes.append(kind)
            if tile["split"] == told.split and captions["captions"]:
                texts.append(captions["captions"][0])
                of_texts.append(kind)
    stored, kinds, asked = np.asarray(vectors, np.float32), np.array(classes), np.array(of_texts)
    shuffled = np.random.default_rng(0).permutation(len(texts))
    queries, asked = archive.encoder.encode_texts(texts)[shuffled], asked[shuffled]
    present = best(queries, stored)
    nowhere = best(archive.encoder.encode_texts(ELSEWHERE), stored)
    taken: dict[str, np.ndarray] = {}
    for kind in sorted(set(of_texts)):
        if kind and (asked == kind).sum() >= FEWEST:
            taken[kind] = best(queries[asked == kind], stored[kinds != kind])
    absent = np.concatenate(list(taken.values()))
    print(f"{len(stored):,} tiles, {len(texts):,} texts of {len(taken)} classes, {archive.model.name}")
    heads = ("judged by", "wrong: class is there", "right: class taken out", "right: of nothing a satellite sees")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, count in (("ten", TILES), ("one", 1)):
        calibration = Calibration.of(present[:, :count])
        assert calibration is not None
        rates = [np.mean([calibration.judge(row[:count]).nothing_matches for row in of]) for of in (absent, nowhere)]
        print(f"| {name} | {calibration.false_alarm:.3f} | {rates[0]:.3f} | {rates[1]:.3f} |")
    calibration = Calibration.of(present)
    assert calibration is not None
    caught = {kind: np.mean([calibration.judge(row).nothing_matches for row in rows]) for kind, rows in taken.items()}
    ordered = sorted(caught, key=lambda kind: -caught[kind])
    print("by class:", ", ".join(f"{kind} {caught[kind]:.2f}" for kind in ordered))


def best(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Scores `[Q, TILES]` of the best tiles."""
    return -np.sort(-(queries @ vectors.T), axis=1)[:, :TILES]


if __name__ == "__main__":
    main()
