"""How near does `plan` come to what the run then takes?

    python benchmarks/forecasts.py --source rsicd --out FOLDER [--tiles 2400] [--rounds 3]

Three stages of one captioned set, each forecast by `urbancross plan` and then run by its verb, both in processes of
their own: embed (a model), segment (an engine without one) and rank (crops of segments, and texts, by heads that one
epoch has taught). Tables are removed between rounds. The run itself says how its forecast came true; this gathers what
it said.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from urbancross import storage

STAGES = {
    "embeddings": "embed --checkpoint starter --workers 2",
    "segments": "segment --engine felzenszwalb --max-segments 6 --workers 2",
    "ranks": "rank --checkpoint heads --workers 2",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", required=True, help="a folder with captions.jsonl")
    parser.add_argument("--out", required=True)
    parser.add_argument("--tiles", type=int, default=2400)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    home = Path(told.out).absolute()
    archive = home / "archive"
    if not archive.is_dir():
        verb("ingest", "--source", str(part_of(Path(told.source).absolute(), home / "set", told.tiles)),
             "--archive", str(archive), "--domain", "d", "--shard-tiles", "512")  # fmt: skip
    if not (home / "heads").is_dir():
        verb("pretrain", "--archive", str(archive), "--out", str(home / "heads"), "--segments", "none",
             "--head-epochs", "1")  # fmt: skip
    results: list[dict[str, Any]] = []
    for number in range(told.rounds):
        for kind, command in STAGES.items():
            verb("plan", "--archive", str(archive), "--no-knobs", "--stage", command, folder=home)
            name, *flags = command.split()
            verb(name, "--archive", str(archive), *flags, folder=home)
            found = {"round": number, "stage": kind, **newest_score(archive)}
            results.append(found)
            print(json.dumps(found), file=sys.stderr, flush=True)
            assert found["table"].startswith(f"{kind}@"), found
        for kind in STAGES:
            for table in storage.tables(archive, kind):
                storage.remove_folder(archive / table)
    storage.write_json(home / "result.json", {"result": results})
    print("| stage | forecast P50, s | took, s | off by, % | within P90 |\n|---|---|---|---|---|")
    for kind in STAGES:
        rows = [found for found in results if found["stage"] == kind]
        told_s, took_s, off = (
            statistics.median(found[key] for found in rows) for key in ("forecast_s", "took_s", "error")
        )
        each = ", ".join(f"{100 * found['error']:+.0f}" for found in rows)
        within = sum(found["took_s"] <= found["forecast_p90_s"] for found in rows)
        print(f"| {kind} | {told_s:.0f} | {took_s:.0f} | {100 * off:+.0f} ({each}) | {within} of {len(rows)} |")


def part_of(source: Path, folder: Path, tiles: int) -> Path:
    """The first tiles of a captioned set, by links."""
    if not folder.is_dir():
        with storage.publish_folder(folder) as place:
            for each in source.iterdir():
                if each.name != "captions.jsonl":
                    (place / each.name).symlink_to(each)
            lines = (source / "captions.jsonl").read_text().splitlines(keepends=True)[:tiles]
            (place / "captions.jsonl").write_text("".join(lines))
    return folder


def verb(name: str, *flags: str, folder: Path | None = None) -> None:
    command = [sys.executable, "-m", "urbancross.cli", name, *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)


def newest_score(archive: Path) -> dict[str, Any]:
    """What the run that ended last said of its forecast."""
    found = sorted(archive.glob("runs/*/forecast_score.json"), key=lambda path: path.stat().st_mtime)
    assert found, f"no run of {archive} was held to a forecast"
    score: dict[str, Any] = json.loads(found[-1].read_text())
    return score


if __name__ == "__main__":
    main()
