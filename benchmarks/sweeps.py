"""Does a sweep whose driver is killed half-way end as an unbroken one, and what do its trials share?

    python benchmarks/sweeps.py --source A --target B --checkpoint C --out FOLDER [--trials 20] [--steps 100]

Segment count (0 to 10), source:target batch ratio and curriculum pace by TPE, on copies of both archives without their
features. `one`: a sweep of one trial with the most segments. `broken`: the driver is killed (SIGKILL) in the middle of
a trial when half of them are done, and the command is given again. `whole`: the same sweep, not killed, on the
archives as `broken` left them. Compared: what was asked, each outcome, the chosen settings, the weights of the chosen
trial; and what the tables of features cost, in seconds and in what the towers embedded.
"""

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from urbancross import storage
from urbancross.report.sweep import worked_out
from urbancross.sweep import outcomes

INTO_A_TRIAL_S = 12.0  # from half of the outcomes to the kill: the next trial is at work by then


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--without-one", action="store_true", help="count what one trial needs, do not make it")
    told = parser.parse_args()
    home = Path(told.out).absolute()
    flags = ["--checkpoint", told.checkpoint, "--workers", "1", "--steps", str(told.steps)]
    flags += ["--evaluate-steps", str(told.steps // 2)]
    one, many = (archives(told, home / name) for name in ("for-one", "for-all"))

    if not told.without_one:
        tune(home / "one", [*flags, *one, "--budget", "1", "--space", "max_segments=10"])
    if not records(home / "broken"):  # or else this is made again, to compare
        tune(home / "broken", [*flags, *many, "--budget", str(told.trials)], kill_at=told.trials // 2)
    tune(home / "broken", [*flags, *many, "--budget", str(told.trials)])
    tune(home / "whole", [*flags, *many, "--budget", str(told.trials)])

    result = {
        "trials": told.trials,
        "same": same(home / "whole", home / "broken"),
        "cost": cost(home),
        "chosen": settings(home / "whole"),
    }
    storage.write_json(home / "result.json", result)
    print(json.dumps(result, indent=2))
    if not all(result["same"].values()):
        raise SystemExit("the broken sweep is not the whole one")


def archives(told: argparse.Namespace, folder: Path) -> list[str]:
    """Flags for copies of both archives that nobody has made features of."""
    for name in ("source", "target"):
        if not (folder / name).is_dir():
            shutil.copytree(getattr(told, name), folder / name, ignore=shutil.ignore_patterns("features@*", "runs"))
    return ["--source", str(folder / "source"), "--target", str(folder / "target")]


def tune(out: Path, flags: list[str], kill_at: int | None = None) -> int:
    """Run the verb, or kill it in a trial once so many are done.

    Returns:
        Outcomes that there are.
    """
    command = [sys.executable, "-m", "urbancross.cli", "tune", "--out", str(out), *flags]
    began = time.monotonic()
    with subprocess.Popen(command) as process:
        while kill_at is not None and process.poll() is None:
            if len(records(out)) >= kill_at:
                time.sleep(INTO_A_TRIAL_S)
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.5)
    if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
        raise SystemExit(f"tune --out {out} ended with {process.returncode}")
    done = len(records(out))
    print(f"{out.name}: {done} outcomes, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return done


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (out / outcomes.TRIALS).glob("*.json")}


def same(whole: Path, broken: Path) -> dict[str, bool]:
    """What both sweeps have in common."""
    asked, measured, chosen, weights = (
        [read(out) for out in (whole, broken)] for read in (points, figures, settings, best_weights)
    )
    pairs = {"asked": asked, "outcomes": measured, "chosen": chosen, "weights": weights}
    return {name: a == b and bool(a) for name, (a, b) in pairs.items()}


def points(out: Path) -> list[Any]:
    history = json.loads((out / outcomes.ASKED).read_text())["history"]
    return [event["point"] for event in history if "asked" in event]


def figures(out: Path) -> dict[str, Any]:
    names = ("state", "agreement", "agreement_ends", "recall", "recall_ends", "embeddings")
    return {key: [record[name] for name in names] for key, record in records(out).items()}


def settings(out: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((out / outcomes.CHOSEN).read_text())
    return told


def best_weights(out: Path) -> list[str]:
    found = sorted((out / outcomes.TRIALS).glob("*/model.safetensors"))
    return [f"{path.parent.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in found]


def cost(home: Path) -> dict[str, Any]:
    """What features cost for all trials, beside what one with the most segments needs, and made where it was."""
    told = json.loads((home / "broken" / outcomes.SHARED).read_text())
    rows = {"one": told["tiles"] + told["texts"] + told["masks"][-1], "all": sum(map(worked_out, told["tables"]))}
    seconds = {"all": sum(table["seconds"] for table in told["tables"])}
    if (home / "one").is_dir():
        alone = json.loads((home / "one" / outcomes.SHARED).read_text())
        assert sum(map(worked_out, alone["tables"])) == rows["one"]
        seconds["one"] = sum(table["seconds"] for table in alone["tables"])
    there = sum(len(storage.tables(home / "for-all" / side, "features")) for side in ("source", "target"))
    each = [record for record in records(home / "broken").values() if record["tables"]]
    return {
        "tables": there,
        "embedded": rows,
        "embedded_ratio": rows["all"] / rows["one"],
        "seconds": seconds,
        "found_by_trials": [sum(record["found"] for record in each), sum(record["tables"] for record in each)],
    }


if __name__ == "__main__":
    main()
