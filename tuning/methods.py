"""Every method of adaptation beside no adaptation at all, over seeds: what each is worth, with intervals.

    python tuning/methods.py --source A --target B --out FOLDER [--seeds 0 1 2] [--methods dann "dann --pace root"]
        [-- --steps 300]

Both archives have to hold features, as `urbancross pretrain` makes them. For each seed heads are pretrained on the
source, then carried to the target by each method, with flags of its own or without; what follows `--` goes to every
`adapt` as it stands. All are measured on the target's tiles of split `valid` by both protocols, and by land cover.
Gains are relative to the pretrained heads, or to the method that `--against` names, paired by seed and tile; `oracle
gap` is the share of the way from there to `oracle`. Prints tables in Markdown and writes FOLDER/methods.json; what is
in FOLDER already is not done again.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from urbancross import adaptation, gaps, metrics, storage, tables, training
from urbancross.captions.land_cover import land_cover
from urbancross.command_line import from_command_line
from urbancross.config import METHODS, AdaptConfig, PretrainConfig
from urbancross.distributed.features import FeatureTables
from urbancross.distributed.feeding import load_pairs
from urbancross.metrics import Embeddings
from urbancross.models import checkpoints
from urbancross.models.dual_encoder import DualEncoder
from urbancross.pairs import Pairs

PROTOCOLS: tuple[metrics.Protocol, ...] = ("field", "unique-text")
BEFORE = "no adaptation"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for flag in ("source", "target", "out"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--captions", default="given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", type=known, default=list(METHODS))
    parser.add_argument("--against", default=BEFORE, help="what gains are relative to: one of --methods")
    told, more = parser.parse_known_args()
    flags = [flag for flag in more if flag != "--"]
    source, target = (pairs_of(archive, told.captions) for archive in (told.source, told.target))
    home = Path(told.out)
    home.mkdir(parents=True, exist_ok=True)
    found, on_source = measured(source, target, told.methods, told.seeds, flags, home)
    results = {protocol: compared(found, target["valid"], protocol, told.against) for protocol in PROTOCOLS}
    apart = gaps.proxy_a_distance(source["train"].images.numpy(), target["train"].images.numpy())
    covers = covers_of(told.target, told.captions)
    by_cover = {method: recall_by_cover(runs, target["valid"], covers) for method, runs in found.items()}
    storage.write_json(
        home / "methods.json",
        {
            "flags": flags,
            "seeds": told.seeds,
            "a_distance": apart,
            "results": results,
            "source_mR": on_source,
            "by_land_cover": by_cover,
        },
    )
    print(f"\nproxy A-distance between the tiles of both domains, by the frozen tower: {apart:.2f}")
    for protocol, rows in results.items():
        print(f"\nmR by `{protocol}` on {len(target['valid'])} tiles, {len(told.seeds)} seeds\n")
        print("| method | mR, % | gain, % | 95 % | oracle gap, % | source mR, % |\n|---|---|---|---|---|---|")
        for method, row in rows.items():
            low, high = (100 * end for end in row["ci95"])
            share = f"{100 * row['oracle_gap']:.0f}" if "oracle_gap" in row else "–"
            print(
                f"| {method} | {100 * row['after']:.1f} | {100 * row['gain']:+.1f} | {low:+.1f} to {high:+.1f} "
                f"| {share} | {np.mean(on_source[method]):.1f} |"
            )

    names, counts = np.unique(covers, return_counts=True)
    print("\nmR by land cover, `unique-text`, %\n")
    print("| method | " + " | ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True)) + " |")
    print("|---" * (len(names) + 1) + "|")
    for method, row in by_cover.items():
        print(f"| {method} | " + " | ".join(f"{100 * row[name]:.1f}" for name in names) + " |")


def known(told: str) -> str:
    """A method, or one with flags of its own."""
    if told.split()[0] not in METHODS:
        raise argparse.ArgumentTypeError(f"{told}: no such method; one of {', '.join(METHODS)}")
    return told


def measured(
    source: dict[str, Pairs],
    target: dict[str, Pairs],
    methods: Sequence[str],
    seeds: Sequence[int],
    flags: Sequence[str],
    home: Path,
) -> tuple[dict[str, list[Embeddings]], dict[str, list[float]]]:
    """What each method makes of the target's tiles and texts of split valid, and its mR on the source's, in %.

    Args:
        source, target: pairs by split.
        flags: for every method.
        home: where each run is kept; what is there already is not done again.
    """
    found: dict[str, list[Embeddings]] = {}
    on_source: dict[str, list[float]] = {}
    for seed in seeds:
        for method in track([BEFORE, *methods], f"seed {seed}"):
            kept = home / f"{method.replace(' ', '_')}-{seed}.npz"
            if not kept.is_file():
                encoder = pretrained(source["train"], seed, home)
                if method != BEFORE:
                    places = ["--checkpoint", "c", "--source", "s", "--target", "t", "--out", "o"]
                    given = [*places, "--method", *shlex.split(method), "--seed", str(seed), *flags]
                    config = from_command_line(AdaptConfig, given, "adapt")
                    adaptation.adapt(
                        encoder, source["train"], target["train"], config, training.ALONE, lambda event: None
                    )
                v, u = embedded(encoder, target["valid"])
                mr = 100 * recall(embedded(encoder, source["valid"]), source["valid"])
                np.savez(kept, v=v, u=u, source_mr=mr)
            with np.load(kept) as told_by:
                found.setdefault(method, []).append((told_by["v"], told_by["u"]))
                on_source.setdefault(method, []).append(float(told_by["source_mr"]))
    return found, on_source


def pairs_of(archive: str, captions: str, max_segments: int = 0) -> dict[str, Pairs]:
    """The pairs of both splits, from the features that lie in the archive."""
    place = storage.archive(archive)
    features = tables.table_of(place, "features", None, "features")
    return {
        split: load_pairs(place, FeatureTables(f"captions@{captions}", features, max_segments), split)
        for split in ("train", "valid")
    }


def covers_of(archive: str, captions: str) -> np.ndarray:
    """The land cover of each tile of split valid, in the order of its pairs."""
    place = storage.archive(archive)
    wanted = {"tiles": ["split"], f"captions@{captions}": ["captions"]}
    wanted |= {tables.table_of(place, "features", None, "features"): ["image"]}
    found = []
    for name in storage.shards(place / "tiles"):
        tiles, lines, features = tables.read_aligned(place, wanted, name).values()
        rows = zip(tiles["split"], lines["captions"], features["failure"], strict=True)
        found += [
            land_cover(told.as_py())
            for split, told, failure in rows
            if (str(split), failure.as_py()) == ("valid", None)
        ]
    return np.array(found)


def recall_by_cover(runs: list[Embeddings], pairs: Pairs, covers: np.ndarray) -> dict[str, float]:
    """mR of each cover's tiles in the whole gallery, mean over runs."""
    told = [
        metrics.evaluate_retrieval(
            *found, owners(pairs), "unique-text", pairs.text_keys.numpy(), bootstrap=1, groups=covers
        )["by"]
        for found in runs
    ]
    return {name: float(np.mean([by[name]["mR"] for by in told])) for name in told[0]}


def pretrained(pairs: Pairs, seed: int, home: Path) -> DualEncoder:
    """Heads that have learnt as `urbancross pretrain` has them learn, without segments; kept for the next method."""
    model = checkpoints.resolve("starter", PretrainConfig.model_fields["width"].default)
    kept = home / f"pretrained-{seed}.pt"
    if not kept.is_file():
        config = PretrainConfig(archive="a", out="o", seed=seed)
        learning = checkpoints.load(model, "cpu", config.dropout, seed)
        training.pretrain(learning, pairs, config, training.ALONE, lambda event: None)
        torch.save(learning.heads.state_dict() | {"scale": learning.scale.detach()}, kept)
    weights = torch.load(kept)
    encoder = checkpoints.load(model)  # without dropout from here on
    encoder.scale.data.copy_(weights.pop("scale"))
    encoder.heads.load_state_dict(weights)
    return encoder


@torch.inference_mode()
def embedded(encoder: DualEncoder, pairs: Pairs) -> Embeddings:
    return encoder.heads["image"](pairs.images).numpy(), encoder.heads["text"](pairs.texts).numpy()


def owners(pairs: Pairs) -> np.ndarray:
    return torch.repeat_interleave(torch.arange(len(pairs)), pairs.starts.diff()).numpy()


def recall(found: Embeddings, pairs: Pairs) -> float:
    return float(metrics.evaluate_retrieval(*found, owners(pairs), bootstrap=1)["mR"])


def compared(
    found: dict[str, list[Embeddings]], pairs: Pairs, protocol: metrics.Protocol, before: str = BEFORE
) -> dict[str, dict[str, Any]]:
    """Each method against one of them."""
    keys = pairs.text_keys.numpy()
    rows = {method: metrics.gain(found[before], runs, owners(pairs), protocol, keys) for method, runs in found.items()}
    if "oracle" in rows:
        span = rows["oracle"]["after"] - rows["oracle"]["before"]
        for row in rows.values():
            row["oracle_gap"] = (row["after"] - row["before"]) / span
    return rows


if __name__ == "__main__":
    main()
