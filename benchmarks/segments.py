"""Seconds a tile and peak memory of `--engine sam` beside segment-anything's own generator in a plain loop.

    python benchmarks/segments.py [--sam small vit_b] [--points 16 32] [--tile-px 224 512 1024] [--runs 3] [--memory]

Both in turn on the same drawn tile, one thread, the same settings; seconds are the process's CPU time, which says more
than a clock on a machine with neighbours. `small` is the model of tuning/small_sam.py, `vit_b` has the real one's shape
and random weights: then a pilot grid sets the thresholds so that a third of the masks passes the predicted IoU, half of
each mask's logits the mask threshold and most masks the stability, and no box is dropped for another, so that there are
masks to compare and to write.
`fast` is a smaller input (--fast-px) on the same points, its masks held against those of segment-anything.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator

from urbancross.models.sam import Shape, load
from urbancross.segments.masks import Mask
from urbancross.segments.sam import SamMasks

sys.path.insert(0, str(Path(__file__).parents[1] / "tuning"))
from small_sam import THRESHOLDS, random_sam, scene, train

VIT_B = Shape(768, 12, 12, 1024, 16, 14, (2, 5, 8, 11), 4.0, True, 256, 16, 3, 2, 2048, 2, 3, 256)
FAST_PX = {"vit_b": 512, "small": 64}
STAGES = ("encoder", "decoder", "post-processing", "write")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sam", nargs="+", default=["small", "vit_b"], choices=["small", "vit_b"])
    parser.add_argument("--points", nargs="+", type=int, default=[16, 32], help="a side of the grid")
    parser.add_argument("--tile-px", nargs="+", type=int, default=[224, 512, 1024])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--fast-px", type=int, help="input of the fast mode; 512 for vit_b, 64 for small")
    parser.add_argument("--no-fast", action="store_true")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time, a process for each")
    parser.add_argument("--weights", type=Path, default=Path(tempfile.gettempdir()), help="where made weights are kept")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    told = parser.parse_args()
    torch.set_num_threads(1)
    if told.only:
        print(json.dumps(peak(**json.loads(told.only))))
        return
    print(f"settings: {vars(told)}; torch {torch.__version__}, one thread")
    for sam in told.sam:
        checkpoint = made(sam, told.weights)
        for tile_px in told.tile_px:
            tile, _ = scene(7, tile_px, tile_px)
            settings = dict(THRESHOLDS) if sam == "small" else pilot(checkpoint, tile)
            for points in told.points:
                case = settings | {"points_per_side": points}
                name = f"{sam}, {points} x {points} points, {tile_px} px"
                if told.memory:
                    memory(name, checkpoint, tile_px, case)
                else:
                    fast_px = None if told.no_fast else told.fast_px or FAST_PX[sam]
                    compare(name, checkpoint, tile, case, told.runs, fast_px)


def made(sam: str, folder: Path) -> Path:
    path = folder / f"segments-{sam}.pth"
    if not path.exists():
        if sam == "small":
            return train(path)
        torch.save(random_sam(VIT_B).state_dict(), path)
    return path


def pilot(checkpoint: Path, tile: np.ndarray) -> dict[str, float]:
    """Thresholds for weights that know nothing, from 4 x 4 points."""
    maker = SamMasks(str(checkpoint), points_per_side=4, pred_iou_thresh=-1.0)
    frame = maker.frame(tile.shape[:2])
    (embedding,) = maker.embed([tile])
    ious, logits = (torch.cat(part) for part in zip(*maker.propose(embedding, frame), strict=True))
    good = ious > (least := float(ious.quantile(2 / 3)))
    logits = logits[good]
    threshold, offset = float(logits.median()), 0.1 * float(logits.std())
    inner, outer = ((logits > threshold + by).flatten(1).sum(1) for by in (offset, -offset))
    return {
        "mask_threshold": threshold,
        "pred_iou_thresh": least,
        "stability_score_offset": offset,
        "stability_score_thresh": 0.8 * float((inner / outer).nanmedian()),
        "box_nms_thresh": 1.0,
    }


def ours(checkpoint: Path, settings: dict[str, Any]) -> SamMasks:
    rest = dict(settings)
    threshold = rest.pop("mask_threshold", 0.0)
    maker = SamMasks(str(checkpoint), **rest)
    maker.model.mask_threshold = threshold
    return maker


def theirs(checkpoint: Path, settings: dict[str, Any]) -> SamAutomaticMaskGenerator:
    rest = dict(settings)
    threshold = rest.pop("mask_threshold", 0.0)
    model = load(checkpoint)
    model.mask_threshold = threshold
    return SamAutomaticMaskGenerator(model, output_mode="coco_rle", **rest)


def compare(
    name: str, checkpoint: Path, tile: np.ndarray, settings: dict[str, Any], runs: int, fast_px: int | None
) -> None:
    reference = theirs(checkpoint, settings)
    contenders: dict[str, Callable[[], tuple[dict[str, float], list[dict[str, Any]]]]] = {}
    contenders["segment-anything"] = lambda: run_reference(reference, tile)
    exact = ours(checkpoint, settings)
    contenders["exact"] = lambda: run_ours(exact, tile)
    if fast_px:
        fast = ours(checkpoint, settings | {"input_px": fast_px})
        contenders[f"fast, {fast_px} px"] = lambda: run_ours(fast, tile)
    seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
    codes: dict[str, list[dict[str, Any]]] = {}
    for _ in range(runs):
        for contender, run in contenders.items():
            stages, codes[contender] = run()
            seconds[contender].append(stages)
    whole = {contender: [sum(run.values()) for run in found] for contender, found in seconds.items()}
    for contender, found in seconds.items():
        stages = " | ".join(f"{statistics.median(run[stage] for run in found):.3f}" for stage in STAGES)
        ratios = [a / b for a, b in zip(whole["segment-anything"], whole[contender], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        total = statistics.median(whole[contender])
        same = agreement(codes[contender], codes["segment-anything"])
        print(f"| {name} | {contender} | {stages} | {total:.3f} | {spread} | {same} |", flush=True)


def run_reference(
    generator: SamAutomaticMaskGenerator, tile: np.ndarray
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    spent: dict[str, float] = defaultdict(float)
    model = generator.predictor.model
    parts = ((model.image_encoder, "encoder"), (model.prompt_encoder, "decoder"), (model.mask_decoder, "decoder"))
    hooks = []
    for part, stage in parts:
        started: list[float] = []
        hooks.append(part.register_forward_pre_hook(lambda *_, s=started: s.append(time.process_time())))
        hooks.append(
            part.register_forward_hook(
                lambda *_, s=started, stage=stage: spent.update({stage: spent[stage] + time.process_time() - s.pop()})
            )
        )
    begin = time.process_time()
    found = generator.generate(tile)
    spent["post-processing"] = time.process_time() - begin - spent["encoder"] - spent["decoder"]
    for hook in hooks:
        hook.remove()
    codes = [mask["segmentation"] for mask in found]
    begin = time.process_time()
    write([code | {"iou": mask["predicted_iou"]} for code, mask in zip(codes, found, strict=True)])
    spent["write"] = time.process_time() - begin
    return spent, codes


def run_ours(maker: SamMasks, tile: np.ndarray) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What `SamMasks.masks` does for a tile, with a clock between its steps."""
    spent: dict[str, float] = defaultdict(float)
    last = time.process_time()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.process_time()
        spent[stage] += now - last
        last = now

    frame = maker.frame(tile.shape[:2])
    (embedding,) = maker.embed([tile])
    lap("encoder")
    firm: list[Mask] = []
    for good in maker.propose(embedding, frame):
        lap("decoder")
        firm += maker.firm(*good, frame)
        lap("post-processing")
    lap("decoder")
    found = maker.distinct(firm)
    lap("post-processing")
    write([vars(mask) for mask in found])
    lap("write")
    return spent, [{"size": list(mask.size), "counts": mask.rle} for mask in found]


def write(rows: list[dict[str, Any]]) -> None:
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows), file.name)


def agreement(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
    """Masks in all; of those of `wanted`, how many are matched one to one at IoU 0.5, and how well; the rest."""
    if not found or not wanted:
        return f"{len(found)} masks of {len(wanted)}"
    ious = coco.iou(found, wanted, [0] * len(wanted))
    matched = []
    while ious.size and ious.max() >= 0.5:
        a, b = np.unravel_index(ious.argmax(), ious.shape)
        matched.append(ious[a, b])
        ious[a], ious[:, b] = -1, -1
    told = f"{len(found)} masks, {len(wanted) - len(matched)} missing, {len(found) - len(matched)} extra"
    return f"{told}; IoU {np.mean(matched):.4f}, least {min(matched):.4f}" if matched else told


def memory(name: str, checkpoint: Path, tile_px: int, settings: dict[str, Any]) -> None:
    peaks = {}
    for contender in ("segment-anything", "exact"):
        case = {"contender": contender, "checkpoint": str(checkpoint), "tile_px": tile_px, "settings": settings}
        command = [sys.executable, __file__, "--only", json.dumps(case)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[contender] = json.loads(done.stdout.splitlines()[-1])
    print(f"| {name} | " + " | ".join(f"{peak:,.0f}" for peak in peaks.values()) + " |", flush=True)


def peak(contender: str, checkpoint: str, tile_px: int, settings: dict[str, Any]) -> float:
    """MiB of this process at the most, the model and libraries included."""
    tile, _ = scene(7, tile_px, tile_px)
    if contender == "exact":
        list(ours(Path(checkpoint), settings).masks([tile]))
    else:
        theirs(Path(checkpoint), settings).generate(tile)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
