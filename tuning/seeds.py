"""Adapt one checkpoint with several seeds and evaluate each beside source-only, on the same tiles.

    python tuning/seeds.py --checkpoint C --source A1 --target A2 --out FOLDER --seeds 0 1 2 [-- --steps 200]

What follows `--` goes to `adapt` as it stands. Writes FOLDER/seeds.json and prints a line per seed and their mean.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import t

from urbancross import cli, config, storage
from urbancross.command_line import from_command_line
from urbancross.errors import UrbanCrossError


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for flag in ("checkpoint", "source", "target", "out"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--target-captions")
    parser.add_argument("--protocol", default="field")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    told, more = parser.parse_known_args()
    home = Path(told.out)
    captions = ["--target-captions", told.target_captions] if told.target_captions else []
    results = {"source only": evaluate(told, told.checkpoint, home / "source-only.json")}
    for seed in told.seeds:
        out = home / f"adapted-{seed}"
        flags = ["--checkpoint", told.checkpoint, "--source", told.source, "--target", told.target, "--out", str(out)]
        adapt = from_command_line(
            config.AdaptConfig,
            [*flags, "--seed", str(seed), *captions, *(flag for flag in more if flag != "--")],
            "adapt",
        )
        cli.call("adapt", adapt)
        results[f"adapted, seed {seed}"] = evaluate(told, str(out), home / f"adapted-{seed}.json")
    before = results["source only"]["mR"]
    gains = [found["mR"] - before for name, found in results.items() if name != "source only"]
    for name, found in results.items():
        low, high = found["ci95"]["mR"]
        print(f"{name:<20} mR {100 * found['mR']:5.2f} % (95 % of tiles {100 * low:.2f} to {100 * high:.2f})")
    mean = statistics.mean(gains)
    half = (
        float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
        if len(gains) > 1
        else math.nan
    )
    span = f"95 % of seeds {100 * (mean - half):+.2f} to {100 * (mean + half):+.2f}"
    print(f"gain over source only, mean of {len(gains)} seeds: {100 * mean:+.2f} points ({span})")
    storage.write_json(home / "seeds.json", {"results": results, "gains": gains})


def evaluate(told: argparse.Namespace, checkpoint: str, out: Path) -> dict[str, Any]:
    settings = config.EvaluateConfig(
        archive=told.target,
        checkpoint=checkpoint,
        split=told.split,
        protocol=told.protocol,
        captions=told.target_captions,
        out=str(out),
    )
    cli.call("evaluate", settings)
    return json.loads(out.read_text())


if __name__ == "__main__":
    try:
        main()
    except UrbanCrossError as error:
        cli.fail("tuning/seeds.py", error, cli.BAD_INPUT)
