"""Does adaptation gain more between like domains than between unlike ones?

    python tuning/domains.py --archives A U E --out FOLDER [--seeds 0 1 2] [--methods transport oracle] [--gallery 100]

Every archive is source and target in turn; all have to hold features, as `urbancross pretrain` makes them. Heads are
pretrained on each source and carried to each target as in `methods.py`, and measured by `unique-text` on as many tiles
of every target's split `valid`, drawn by seed 0, since recall falls as the gallery grows. Domains are told apart by the
proxy A-distance between their tiles, as the frozen tower sees them: 0 = alike, 2 = apart. Prints a table, likest pairs
first, and writes FOLDER/domains.json; what is in FOLDER already is not done again.
"""

import argparse
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from methods import BEFORE, compared, known, measured, pairs_of

from urbancross import gaps, storage
from urbancross.metrics import Embeddings
from urbancross.pairs import Pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archives", nargs="+", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--captions", default="given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", type=known, default=["transport", "urbancross", "oracle"])
    parser.add_argument("--gallery", type=int, help="tiles of every target; default: as many as the smallest has")
    told = parser.parse_args()
    pairs = {Path(archive).name: pairs_of(archive, told.captions) for archive in told.archives}
    size = told.gallery or min(len(found["valid"]) for found in pairs.values())
    chosen = {name: drawn(found["valid"], size) for name, found in pairs.items()}
    rows = []
    for source, target in permutations(pairs, 2):
        home = Path(told.out) / f"{source}-to-{target}"
        home.mkdir(parents=True, exist_ok=True)
        found, _ = measured(pairs[source], pairs[target], told.methods, told.seeds, [], home)
        held, rows_held = pairs[target]["valid"], chosen[target]
        runs = {method: [of(each, held, rows_held) for each in each_seed] for method, each_seed in found.items()}
        results = compared(runs, some(held, rows_held), "unique-text")
        apart = gaps.proxy_a_distance(*(pairs[name]["train"].images.numpy() for name in (source, target)))
        rows.append({"source": source, "target": target, "a_distance": apart, "results": results})
    rows.sort(key=lambda row: row["a_distance"])
    storage.write_json(Path(told.out) / "domains.json", {"seeds": told.seeds, "gallery": size, "pairs": rows})
    print(f"\nmR by `unique-text` on {size} tiles of each target, {len(told.seeds)} seeds\n")
    print("| source to target | A-distance | no adaptation, % |" + "".join(f" {name} |" for name in told.methods))
    print("|---|---|---|" + "---|" * len(told.methods))
    for row in rows:
        gains = []
        for method in told.methods:
            told_of = row["results"][method]
            low, high = (100 * end for end in told_of["ci95"])
            gains.append(f"{100 * told_of['gain']:+.0f} ({low:+.0f} to {high:+.0f})")
        print(
            f"| {row['source']} to {row['target']} | {row['a_distance']:.2f} "
            f"| {100 * row['results'][BEFORE]['after']:.1f} | {' | '.join(gains)} |"
        )


def drawn(pairs: Pairs, size: int) -> torch.Tensor:
    """Rows of so many tiles, ascending."""
    return torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:size].sort().values


def lines_of(pairs: Pairs, rows: torch.Tensor) -> torch.Tensor:
    """The captions of some tiles, as rows of `Pairs.texts`."""
    return torch.cat([torch.arange(int(pairs.starts[row]), int(pairs.starts[row + 1])) for row in rows.tolist()])


def some(pairs: Pairs, rows: torch.Tensor) -> Pairs:
    """Some tiles with all of their captions."""
    lines = lines_of(pairs, rows)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), pairs.starts.diff()[rows].cumsum(0)])
    return replace(
        pairs,
        images=pairs.images[rows],
        texts=pairs.texts[lines],
        starts=starts,
        text_keys=pairs.text_keys[lines],
        segments=pairs.segments[rows],
        present=pairs.present[rows],
    )


def of(found: Embeddings, pairs: Pairs, rows: torch.Tensor) -> Embeddings:
    """The embeddings of some tiles and of their captions."""
    tiles, texts = found
    return tiles[rows.numpy()], np.asarray(texts)[lines_of(pairs, rows).numpy()]


if __name__ == "__main__":
    main()
