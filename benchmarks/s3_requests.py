"""How many requests does a shard cost an S3 bucket?

    python benchmarks/s3_requests.py [--tiles 2048] [--image-bytes 15000]

Reads one shard of `tiles` as a stage does, publishes one of embeddings and one of segments' size, lists a table, and
counts what comes by at a proxy before moto's server (both are the tests' own). No Ray: a worker does the same.
"""

import argparse
import os
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import FaultProxy  # noqa: E402

from urbancross import lease, schemas, storage  # noqa: E402
from urbancross.tables import read_aligned  # noqa: E402

SECRETS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiles", type=int, default=2048)
    parser.add_argument("--image-bytes", type=int, default=15_000)
    parser.add_argument("--width", type=int, default=512)
    told = parser.parse_args()
    command = [sys.executable, str(ROOT / "tests" / "s3_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        port = int((server.stdout or sys.stdin).readline())
        proxy = FaultProxy(port)
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        os.environ.update(SECRETS | {"AWS_EC2_METADATA_DISABLED": "true"})
        bucket = f"bucket-{uuid.uuid4().hex}"
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=bucket)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.server_port}"
        count(proxy, storage.place(f"s3://{bucket}/archive"), told)
        server.terminate()


def count(proxy: FaultProxy, archive: Any, told: argparse.Namespace) -> None:
    name = "part-00000.parquet"
    ids = [f"t-{number:09d}" for number in range(told.tiles)]
    drawn = np.random.default_rng(0)
    known = {"tile_id": ids, "domain": ["x"] * told.tiles}
    known["image"] = [drawn.bytes(told.image_bytes) for _ in ids]
    tiles = pa.table(
        [pa.array(known.get(f.name, [None] * told.tiles), f.type) for f in schemas.TILES], schema=schemas.TILES
    )
    vectors = pa.FixedSizeListArray.from_arrays(drawn.standard_normal(told.tiles * told.width, np.float32), told.width)
    made = pa.table([pa.array(ids), vectors, pa.nulls(told.tiles, pa.string())], names=["tile_id", "vector", "failure"])

    def told_of(what: str, action: Callable[[], Any]) -> Any:
        del proxy.seen[:]
        found = action()
        kinds = Counter(request.split()[0] for request in proxy.seen)
        print(f"{what}: " + ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())), flush=True)
        return found

    told_of("publish a shard of tiles", lambda: storage.publish_shard(archive / "tiles" / name, tiles))
    columns = {"tiles": ["image"]}
    told_of("read it, with the columns that embed wants", lambda: read_aligned(archive, columns, name))
    told_of("publish a shard of embeddings", lambda: storage.publish_shard(archive / "embeddings@x" / name, made))
    told_of("list a table", lambda: storage.shards(archive / "tiles"))
    held = told_of("take a lease", lambda: lease.Lease(archive / "embeddings@x"))
    told_of("let it go", held.let_go)


if __name__ == "__main__":
    main()
