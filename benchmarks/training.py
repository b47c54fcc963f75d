"""What does feeding and Ray cost a training, beside a plain torch loop over tensors in memory?

    python benchmarks/training.py --out FOLDER [--tiles 512] [--batch 64] [--epochs 2] [--rounds 5]

Runs `pretrain --train image` with one and with two workers, one thread each, over an archive of drawn tiles, and a loop
written by hand that takes the same steps over crops and features that lie in memory, in one process with one thread,
once with glibc's memory as workers have it (`session.MEMORY`) and once as it comes; in turn, so that a noisy machine is
noisy to all. Counts pairs per second between the first and the last step of the image stage, so that starting Ray and
loading weights are left out, and what part of that time waits for data.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--tiles", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)  # what the child process does
    told = parser.parse_args()
    os.environ.update(THREADS)
    if told.plain:
        print(json.dumps(plain(told)))
        return
    from urbancross.distributed.session import MEMORY

    home = Path(told.out).absolute()
    archive = drawn(home, told.tiles)
    rates: dict[str, list[float]] = {"loop, memory as it comes": [], "loop": [], "one worker": [], "two workers": []}
    waits: list[float] = []
    for number in range(told.rounds):
        command = [sys.executable, __file__, *sys.argv[1:], "--plain"]
        for name, memory in (("loop, memory as it comes", {}), ("loop", MEMORY)):
            told_by = subprocess.run(command, env=os.environ | memory, check=True, capture_output=True)
            rates[name].append(json.loads(told_by.stdout)["rate"])
        for workers, name in ((1, "one worker"), (2, "two workers")):
            found = trained(home, archive, workers, told)
            rates[name].append(found["rate"])
            waits.append(found["waiting"])
        print(f"round {number}: " + ", ".join(f"{name} {found[-1]:.2f} pairs/s" for name, found in rates.items()))
    of_loop = [one / loop for one, loop in zip(rates["one worker"], rates["loop"], strict=True)]
    of_one = [two / one for two, one in zip(rates["two workers"], rates["one worker"], strict=True)]
    result = {
        "tiles": told.tiles,
        "batch": told.batch,
        "epochs": told.epochs,
        "rates": rates,
        "one_worker_of_loop": statistics.median(of_loop),
        "two_workers_of_one": statistics.median(of_one),
        "waiting": statistics.median(waits),
        "ratios": {"one_worker_of_loop": of_loop, "two_workers_of_one": of_one, "waiting": waits},
    }
    print(json.dumps(result, indent=2))


def drawn(home: Path, tiles: int) -> Path:
    """An archive of so many tiles of 224 px of a drawn country, with captions from templates, all of split train."""
    from urbancross import cli
    from urbancross.world import NORTHLAND, write_country

    archive = home / "archive"
    if archive.is_dir():
        return archive
    scenes = -(-tiles // 36)
    write_country(NORTHLAND, home / "world", scenes=scenes, scene_px=1344, seed=3)
    for verb, settings in {
        "ingest": {"source": str(home / "world" / "scenes"), "domain": "d", "shard_tiles": 64, "split": "train"},
        "geotag": {"osm": str(next((home / "world").glob("*.osm*")))},
        "caption": {"engine": "template"},
        "pretrain": {"out": str(home / "first"), "head_epochs": 1},  # makes the features
    }.items():
        cli.call(verb, cli.VERBS[verb].kind(archive=str(archive), **settings))
    return archive


def trained(home: Path, archive: Path, workers: int, told: argparse.Namespace) -> dict[str, float]:
    """Pairs per second of the image stage of one run, and the share of its time that waits for data."""
    out = home / f"by-{workers}"
    shutil.rmtree(out, ignore_errors=True)
    flags = {
        "archive": archive,
        "out": out,
        "train": "image",
        "head-epochs": 1,
        "epochs": told.epochs,
        "image-batch": told.batch,
        "workers": workers,
    }
    command = [sys.executable, "-m", "urbancross.cli", "pretrain"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((out / "timing.json").read_text())["image"]
    pairs = found["steps"] * told.batch
    return {"rate": pairs / found["seconds"], "waiting": found["waited_s"] / found["seconds"]}


def plain(told: argparse.Namespace) -> dict[str, float]:
    """The same steps, by hand: one-cycle AdamW over heads and tower, crops and text features in memory."""
    import torch
    from torch import nn

    from urbancross import losses, storage
    from urbancross.config import PretrainConfig
    from urbancross.distributed.features import FeatureTables
    from urbancross.distributed.feeding import load_pairs
    from urbancross.models import checkpoints
    from urbancross.pairs import Plan

    torch.set_num_threads(1)
    archive = storage.archive(str(Path(told.out).absolute() / "archive"))
    config = PretrainConfig(archive="a", out="o", train="image", image_batch=told.batch)
    encoder = checkpoints.load(checkpoints.resolve("starter", config.width), dropout=config.dropout)
    tables = FeatureTables("captions@template", storage.tables(archive, "features")[0], 0)
    pairs = load_pairs(archive, tables, "train", images=True)
    plan = Plan(told.batch, 0, config.captions_per_tile, encoder.image_px, config.crop_px)
    steps = list(pairs.steps(plan, 1, told.epochs * pairs.steps_per_epoch(told.batch), 0, 1))
    heads = nn.ModuleList([encoder.heads["image"], encoder.heads["text"]])
    heads.train()
    groups: list[dict[str, Any]] = [
        {"params": [*heads.parameters(), encoder.scale], "lr": config.head_lr},
        {"params": encoder.unlock_image_tower(None), "lr": config.tower_lr},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [config.head_lr, config.tower_lr], total_steps=len(steps) + 5
    )
    began = 0.0
    for number, step in enumerate(steps):
        if number == 1:
            began = time.monotonic()  # the first step warms up, here as there
        v = encoder.heads["image"](encoder.image_features(step.images))
        u = encoder.heads["text"](step.texts.flatten(0, 1))
        loss = losses.infonce(v, u, losses.positives(step.tile_keys, step.text_keys), encoder.inverse_temperature())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return {"rate": (len(steps) - 1) * told.batch / (time.monotonic() - began)}


if __name__ == "__main__":
    main()
