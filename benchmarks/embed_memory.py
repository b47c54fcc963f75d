"""Does the driver's memory stay flat while `embed` runs over many tiles, and is every tile there afterwards?

    python benchmarks/embed_memory.py --tiles 20000 --out /tmp/embed-memory

Makes a captioned set of copies (hard links) of one 64 px tile, ingests and embeds it with `starter`, and samples the
resident memory of the `embed` driver process four times a second.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiles", type=int, default=20_000)
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int, default=2)
    told = parser.parse_args()
    home = Path(told.out)
    make_set(home / "set", told.tiles)
    verb = [sys.executable, "-m", "urbancross.cli"]
    archive = str(home / "archive")
    subprocess.run(
        [*verb, "ingest", "--source", str(home / "set"), "--archive", archive, "--domain", "copies"], check=True
    )
    began = time.monotonic()
    command = [*verb, "embed", "--archive", archive, "--checkpoint", "starter", "--workers", str(told.workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    driver, samples = psutil.Process(process.pid), []
    while process.poll() is None:
        try:
            samples.append((time.monotonic() - began, driver.memory_info().rss / 2**20))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.25)
    seconds = time.monotonic() - began
    balance = (process.stdout.read() if process.stdout else "").strip().splitlines()[-1]
    table = home / "archive" / "embeddings@starter"
    rows = sum(pq.read_metadata(shard).num_rows for shard in table.glob("*.parquet"))
    memory = np.array([mib for _, mib in samples])
    tenth = max(len(memory) // 10, 1)
    result = {
        "tiles": told.tiles,
        "rows": rows,
        "balance": balance,
        "exit_code": process.returncode,
        "seconds": round(seconds, 1),
        "tiles_per_second": round(told.tiles / seconds, 1),
        # the first fifth of the run is the start of Ray; after that, growth would be the driver holding rows
        "driver_mib_after_a_fifth": round(float(np.median(memory[2 * tenth : 3 * tenth])), 1),
        "driver_mib_at_the_end": round(float(np.median(memory[-tenth:])), 1),
        "driver_mib_highest": round(float(memory.max()), 1),
    }
    print(json.dumps(result, indent=2))


def make_set(folder: Path, tiles: int) -> None:
    """One PNG and its hard links, with a caption each."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(first)
    for number in range(1, tiles):
        if not (folder / f"{number}.png").exists():
            os.link(first, folder / f"{number}.png")
    lines = (json.dumps({"image": f"{number}.png", "captions": ["a tile"]}) + "\n" for number in range(tiles))
    (folder / "captions.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
