"""What geo-tags are worth to captions: told, shuffled among tiles, fewer, dropped, or none, on a drawn country.

    python tuning/tags.py --out FOLDER [--scenes 10] [--seeds 0 1 2] [--model CAPTIONER]

Draws a country, writes captions from its tags in every variant, pretrains on each with every seed, and measures all on
the same test tiles against the same reference captions (from all tags, in other words). With --model, a vision-language
model that is told no tags writes one variant more. Prints a table in Markdown and writes FOLDER/tags.json; what is
there already is not made again.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import t

from urbancross import cli, storage
from urbancross.errors import UrbanCrossError
from urbancross.world import NORTHLAND, write_country

BASE = "tags"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "shuffled": {"shuffle_tags": True},
    "at most 1 tag": {"max_tags": 1},
    "at most 2 tags": {"max_tags": 2},
    "at most 4 tags": {"max_tags": 4},
    "25 % dropped": {"tag_drop_rate": 0.25},
    "50 % dropped": {"tag_drop_rate": 0.5},
    "75 % dropped": {"tag_drop_rate": 0.75},
}
REFERENCE = "reference"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", help="folder of a vision-language model that vLLM serves")
    parser.add_argument("--engine-args", default="{}")
    parser.add_argument("--head-epochs", type=int, default=16)
    told = parser.parse_args()
    home = Path(told.out).absolute()
    archive = country(home, told.scenes)
    call("caption", archive=archive, name=REFERENCE, seed=1000)
    results = {}
    for name, flags in VARIANTS.items():
        call("caption", archive=archive, name=variant(name), **flags)
        results[name] = [measured(home, archive, name, seed, told.head_epochs) for seed in told.seeds]
    truths = {name: truth(archive, name) for name in VARIANTS}
    if told.model:
        name = "no tags, by a model"
        model = {
            "engine": "vllm",
            "model": told.model,
            "engine_args": json.loads(told.engine_args),
            "captions_per_tile": 3,
        }
        call("caption", archive=archive, name=variant(name), tags=False, **model)
        results[name] = [measured(home, archive, name, seed, told.head_epochs) for seed in told.seeds]
        truths[name] = truth(archive, name)
    chance = results[BASE][0]["chance_mR"]
    storage.write_json(home / "tags.json", {"seeds": told.seeds, "truth": truths, "results": results})
    print(table(results, truths, chance))


def country(home: Path, scenes: int) -> str:
    """An archive of the drawn country, with geo-tags."""
    world, archive = home / "world", str(home / "archive")
    if not world.is_dir():
        with storage.publish_folder(world) as folder:
            write_country(NORTHLAND, folder, scenes=scenes, scene_px=1344, seed=7)
    call("ingest", source=str(world / "scenes"), archive=archive, domain=NORTHLAND.name, shard_tiles=128, seed=7)
    call("geotag", archive=archive, osm=str(world / "map.osm"))
    return archive


def measured(home: Path, archive: str, name: str, seed: int, epochs: int) -> dict[str, Any]:
    """Metrics of a model that learnt from one variant's captions, on the test tiles and the reference captions."""
    out = home / f"{variant(name)}-{seed}"
    metrics = home / f"{variant(name)}-{seed}.json"
    if not metrics.is_file():
        call("pretrain", archive=archive, out=str(out), captions=variant(name), segments="none", seed=seed,
             head_epochs=epochs, workers=1)  # fmt: skip
        call("evaluate", archive=archive, checkpoint=str(out), captions=REFERENCE, split="test", out=str(metrics),
             workers=1)  # fmt: skip
    found: dict[str, Any] = storage.read_json(metrics, "metrics")
    return found


def truth(archive: str, name: str) -> dict[str, float]:
    """Mean precision and coverage of a variant's captions against the map, and the share that contradicts it."""
    place = storage.archive(archive) / f"captions@{variant(name)}"
    shards = [storage.read_shard(place / shard, ["verdict"])["verdict"].to_pylist() for shard in storage.shards(place)]
    found = [verdict for shard in shards for verdict in shard if verdict is not None and verdict["word"] != "no map"]
    means = {
        key: statistics.mean([verdict[key] for verdict in found if verdict[key] is not None] or [math.nan])
        for key in ("precision", "coverage")
    }
    return means | {"contradicted": sum(verdict["word"] == "contradicted" for verdict in found) / max(len(found), 1)}


def table(results: dict[str, list[dict[str, Any]]], truths: dict[str, dict[str, float]], chance: float) -> str:
    """Mean mR over seeds, and the paired difference to all tags, each with its 95 % interval over seeds."""
    first = results[BASE][0]
    base = [100 * found["mR"] for found in results[BASE]]
    lines = [
        f"{first['gallery']['tiles']} test tiles, {first['gallery']['texts']} texts, chance mR {100 * chance:.1f} %",
        "",
        "| captions from | precision | coverage | contradicted | mR | against all tags |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        scores = [100 * found["mR"] for found in runs]
        gains = [score - other for score, other in zip(scores, base, strict=True)]
        against = "" if name == BASE else f"{statistics.mean(gains):+.1f} ± {half(gains):.1f}"
        told = " | ".join(f"{100 * truths[name][key]:.0f} %" for key in ("precision", "coverage", "contradicted"))
        lines.append(f"| {name} | {told} | {statistics.mean(scores):.1f} ± {half(scores):.1f} | {against} |")
    return "\n".join(lines)


def half(values: list[float]) -> float:
    """Half the 95 % interval of a mean."""
    if len(values) < 2:
        return math.nan
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def variant(name: str) -> str:
    return name.replace(" %", "pct").replace(",", "").replace(" ", "-")


def call(verb: str, **settings: Any) -> None:
    print(" ".join(["—", verb, *(f"{key}={value}" for key, value in settings.items() if key != "archive")]), flush=True)
    cli.call(verb, cli.VERBS[verb].kind(**settings))


if __name__ == "__main__":
    try:
        main()
    except UrbanCrossError as error:
        raise SystemExit(str(error)) from None
