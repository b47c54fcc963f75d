"""What each part of pretraining is worth: heads that learn without it, over seeds, with intervals.

    python tuning/ablations.py --archive A --out FOLDER [--seeds 0 1 2] [--segments 6]

The archive has to hold features, as `urbancross pretrain` makes them; with `--segments K` those of K segments. Heads
learn on split `train` and are measured on `valid` by both protocols; gains are relative to the settings as they are by
default, paired by seed and tile. What is in FOLDER already is not done again.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import PROTOCOLS, compared, embedded, pairs_of
from rich.progress import track

from urbancross import storage, training
from urbancross.config import PretrainConfig
from urbancross.metrics import Embeddings
from urbancross.models import checkpoints
from urbancross.pairs import Pairs

DEFAULT = "as by default"
PARTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "one caption of a tile a step": {"captions_per_tile": 1},
    "siglip": {"loss": "siglip"},
    "hinge": {"loss": "hinge"},
}
OWN = "a text's own tile alone is positive"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--captions", default="given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--segments", type=int, default=0, help="K, of a features table that has them")
    told = parser.parse_args()
    home = Path(told.out)
    home.mkdir(parents=True, exist_ok=True)
    pairs = pairs_of(told.archive, told.captions)
    runs: dict[str, tuple[Pairs, dict[str, Any]]] = {name: (pairs["train"], part) for name, part in PARTS.items()}
    runs[OWN] = without_shared_texts(pairs["train"]), {}
    if told.segments:
        with_segments = pairs_of(told.archive, told.captions, told.segments)["train"]
        for encoder in ("separate", "shared"):
            runs[f"{told.segments} segments, {encoder}"] = with_segments, {"segment_encoder": encoder}
    found: dict[str, list[Embeddings]] = {}
    for seed in told.seeds:
        for name, (train, part) in track(runs.items(), f"seed {seed}"):
            kept = home / f"{name.replace(' ', '-')}-{seed}.npz"
            if not kept.is_file():
                v, u = learnt(train, pairs["valid"], PretrainConfig(archive="a", out="o", seed=seed, **part))
                np.savez(kept, v=v, u=u)
            with np.load(kept) as told_by:
                found.setdefault(name, []).append((told_by["v"], told_by["u"]))
    results = {protocol: compared(found, pairs["valid"], protocol, DEFAULT) for protocol in PROTOCOLS}
    storage.write_json(home / "ablations.json", {"seeds": told.seeds, "results": results})
    for protocol, rows in results.items():
        print(f"\nmR by `{protocol}` on {len(pairs['valid'])} tiles, {len(told.seeds)} seeds\n")
        print("| | mR, % | against the default, % | 95 % |\n|---|---|---|---|")
        for name, row in rows.items():
            low, high = (100 * end for end in row["ci95"])
            print(f"| {name} | {100 * row['after']:.1f} | {100 * row['gain']:+.1f} | {low:+.1f} to {high:+.1f} |")


def without_shared_texts(pairs: Pairs) -> Pairs:
    """As if every caption were a text of its own, so that no other tile's equal caption is a positive."""
    return replace(pairs, text_keys=torch.arange(len(pairs.text_keys)))


def learnt(train: Pairs, valid: Pairs, config: PretrainConfig) -> Embeddings:
    encoder = checkpoints.load(checkpoints.resolve("starter", config.width), "cpu", config.dropout, config.seed)
    training.pretrain(encoder, train, config, training.ALONE, lambda event: None)
    return embedded(encoder, valid)


if __name__ == "__main__":
    main()
