"""Tiles per second of `caption --engine vllm` beside one vllm.LLM.generate over the same prompts; start-up apart.

    python benchmarks/captions.py [--model FOLDER] [--tiles 512] [--rounds 5] [--out FOLDER]

The stage runs as users run it, on Ray, one engine on one CPU. Its time is that from the publication of its first shard
to that of its last; the plain loop generates for the tiles of those shards, prompts and decoded images made before the
clock starts, in a process with as many threads. Both in turn, medians. Without --model: a model of random weights,
which writes noise so fast that all other work shows.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from urbancross import schemas, storage

SHARDS = 5
ARGUMENTS = {"kv_cache_memory_bytes": 256 << 20, "dtype": "float32"}
CONTEXT, SEQS, CHARS = 1024, 32, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--tiles", type=int, default=512, help="tiles per shard; the clock runs over four shards")
    parser.add_argument("--batch-tiles", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.plain:
        print(json.dumps(plain(Path(told.plain), told.model)))
        return
    home = Path(tempfile.mkdtemp(prefix="captions-"))
    model = told.model or str(tiny(home / "tiny-vlm"))
    archive = make_archive(home / "archive", told.tiles)
    rates: dict[str, list[float]] = {"stage": [], "plain": []}
    for round_ in range(told.rounds):
        rates["stage"].append(stage(archive, model, told.batch_tiles))
        rates["plain"].append(run_plain(archive, model))
        print(f"round {round_}: stage {rates['stage'][-1]:.2f}, plain {rates['plain'][-1]:.2f} tiles/s", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratios = [a / b for a, b in zip(rates["stage"], rates["plain"], strict=True)]
    print(f"{(SHARDS - 1) * told.tiles} tiles: stage {medians['stage']:.2f}, plain {medians['plain']:.2f} tiles/s")
    print(f"ratio {statistics.median(ratios):.3f} (median of {len(ratios)}; {min(ratios):.3f} to {max(ratios):.3f})")
    shutil.rmtree(home)


def tiny(folder: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny_vlm import build

    build(folder)
    return folder


def make_archive(folder: Path, tiles: int) -> Path:
    for shard in range(SHARDS):
        rows = []
        for number in range(tiles):
            pixels = np.random.default_rng(shard * tiles + number).integers(0, 255, (28, 28, 3), dtype=np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels).resize((224, 224)).save(data, "JPEG", quality=90)
            tile_id = f"{shard}-{number}"
            rows.append({"tile_id": tile_id, "domain": "x", "image": data.getvalue(), "gsd_m": 0.5, "failure": None})
        name = f"part-{shard:05d}.parquet"
        storage.publish_shard(folder / "tiles" / name, pa.Table.from_pylist(rows, schema=schemas.TILES))
    return folder


def stage(archive: Path, model: str, batch: int) -> float:
    """Tiles per second of the stage, after its first shard."""
    table = archive / "captions@bench"
    shutil.rmtree(table, ignore_errors=True)
    flags = ["--archive", str(archive), "--engine", "vllm", "--model", model, "--name", "bench", "--no-tags"]
    flags += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(SEQS), "--max-chars", str(CHARS)]
    flags += ["--attempts", "1", "--batch-tiles", str(batch), "--engine-args", json.dumps(ARGUMENTS)]
    subprocess.run(
        [sys.executable, "-m", "urbancross.cli", "caption", *flags], check=True, capture_output=True, text=True
    )
    shards = sorted((table / name).stat().st_mtime for name in storage.shards(table))
    tiles = sum(storage.row_counts(table, storage.shards(table)[1:]))
    return tiles / (shards[-1] - shards[0])


def run_plain(archive: Path, model: str) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as Ray sets it for an actor of one CPU
    command = [sys.executable, __file__, "--model", model, "--plain", str(archive)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def plain(archive: Path, model: str) -> float:
    """Tiles per second of one `LLM.generate` over the prompts of all shards but the first."""
    from urbancross.captions import prompts
    from urbancross.distributed.vllm_engine import VllmEngine

    engine = VllmEngine(
        model,
        0.7,
        512,
        CHARS,
        False,
        max_model_len=CONTEXT,
        max_num_seqs=SEQS,
        engine_args=ARGUMENTS,
    )
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    tokenizer = engine.llm.get_tokenizer()
    asked, sampling = [], []
    for name in storage.shards(archive / "tiles")[1:]:
        for row in storage.read_shard(archive / "tiles" / name).to_pylist():
            chat = prompts.messages(row["image"], prompts.prompt([], [], prompts.Facts("x", gsd_m=row["gsd_m"])))
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            image = Image.open(io.BytesIO(row["image"])).convert("RGB")
            asked.append({"prompt": text, "multi_modal_data": {"image": image}})
            schema = StructuredOutputsParams(json=prompts.answer_schema(CHARS))
            params = SamplingParams(temperature=0.7, seed=len(asked), max_tokens=512, structured_outputs=schema)
            sampling.append(params)
    engine.llm.generate(asked[:SEQS], sampling[:SEQS], use_tqdm=False)  # warm, as the stage is after its first shard
    engine.llm.reset_prefix_cache()
    started = time.perf_counter()
    engine.llm.generate(asked, sampling, use_tqdm=False)
    return len(asked) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
