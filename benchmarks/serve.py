"""How long do 1,000 searches from 50 clients wait for `urbancross serve`, beside the same ones one after another?

    python benchmarks/serve.py --archive A [--embeddings NAME] [--requests 1000] [--clients 50] [--rounds 3]

Texts are captions of the archive, each asked once, so that no answer is known before; the 40 best tiles are wanted. The
parts of a round, each with a fresh `urbancross serve` process, but for `again`: `apart`: one client, one search after
another. `together`: all clients at once, no limit on the rate; `again`: the same texts of the same process, which
remembers them. `limited`: all clients at once and the rate limit as it is by default; times are of those that were
answered. `pictures`: the 40 tiles of a search, six at a time as browsers ask, for each of 10 searches. Clients are
threads of this process, on the same machine.
"""

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from urbancross import storage, tables

TOP, AT_ONCE = 40, 6
Asked = list[tuple[int, float]]  # status and seconds of each request


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", required=True)
    parser.add_argument("--embeddings")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="file for the figures of every round, as JSON")
    told = parser.parse_args()
    flags = ["--archive", told.archive, *(["--embeddings", told.embeddings] if told.embeddings else [])]
    bodies = [json.dumps({"text": text, "top": TOP}).encode() for text in texts_of(told.archive, told.requests)]
    free = [*flags, "--requests-per-second", "0"]
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(told.rounds):
        found: dict[str, dict[str, Any]] = {}
        with serving(free) as port:
            found["apart"] = figures(*asked(port, bodies, 1))
        with serving(free) as port:
            found["together"] = figures(*asked(port, bodies, told.clients))
            found["again"] = figures(*asked(port, bodies, told.clients))
        with serving(flags) as port:
            found["limited"] = figures(*asked(port, bodies, told.clients))
        with serving(free) as port:
            found["pictures"] = figures(*pictures(port, bodies[:10]))
        rounds.append(found)
        print(f"round {number + 1}: " + json.dumps(found), file=sys.stderr, flush=True)
    if told.out:
        Path(told.out).write_text(json.dumps(rounds, indent=1))
    print("| | answered | p50 ms | p95 ms | most ms | a second |\n|---|---|---|---|---|---|")
    for part in rounds[0]:
        middle = {
            key: float(np.median([found[part][key] for found in rounds])) for key in ("p50", "p95", "max", "rate")
        }
        spread = [found[part]["p95"] for found in rounds]
        statuses = Counter[str]()
        for found in rounds:
            statuses.update(found[part]["statuses"])
        said = ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items()))
        print(
            f"| {part} | {said} | {middle['p50']:.0f} | {middle['p95']:.0f} ({min(spread):.0f}-{max(spread):.0f}) | "
            f"{middle['max']:.0f} | {middle['rate']:.1f} |"
        )


def texts_of(archive: str, count: int) -> list[str]:
    """Distinct captions, chosen by seed."""
    place = storage.archive(archive)
    table = tables.table_of(place, "captions", None, "captions")
    told = [
        text
        for name in storage.shards(place / table)
        for captions in storage.read_shard(place / table / name, ["captions"])["captions"].to_pylist()
        for text in (captions or [])[:1]
    ]
    distinct = sorted(set(told))
    if len(distinct) < count:
        sys.exit(
            f"{archive} has {len(distinct):,} distinct captions, {count:,} wanted; give --requests {len(distinct)}"
        )
    return [distinct[i] for i in np.random.default_rng(0).permutation(len(distinct))[:count]]


@contextlib.contextmanager
def serving(flags: Sequence[str]) -> Iterator[int]:
    """The port of a fresh process."""
    command = [sys.executable, "-m", "urbancross.cli", "serve", "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = re.search(r":(\d+)  ", server.stdout.readline())
        if said is None:
            sys.exit("urbancross serve did not start")
        try:
            yield int(said[1])
        finally:
            server.send_signal(signal.SIGTERM)


def asked(port: int, bodies: Sequence[bytes], clients: int) -> tuple[Asked, float]:
    """Every body once, client k those of numbers k, k + clients, ...; and the seconds of all together."""
    return timed(port, [[("POST", "/api/search", body) for body in bodies[k::clients]] for k in range(clients)])


def pictures(port: int, bodies: Sequence[bytes]) -> tuple[Asked, float]:
    found: Asked = []
    took = 0.0
    for body in bodies:
        with contextlib.closing(HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("POST", "/api/search", body)
            hits = json.loads(connection.getresponse().read())["hits"]
        wanted = [("GET", f"/api/tiles/{hit['number']}/picture?px=256", b"") for hit in hits]
        some, seconds = timed(port, [wanted[k::AT_ONCE] for k in range(AT_ONCE)])
        found, took = found + some, took + seconds
    return found, took


def timed(port: int, of_clients: list[list[tuple[str, str, bytes]]]) -> tuple[Asked, float]:
    def client(requests: list[tuple[str, str, bytes]]) -> Asked:
        found = []
        with contextlib.closing(HTTPConnection("127.0.0.1", port)) as connection:
            for method, path, body in requests:
                began = time.perf_counter()
                connection.request(method, path, body or None)
                response = connection.getresponse()
                response.read()
                found.append((response.status, time.perf_counter() - began))
        return found

    began = time.perf_counter()
    with ThreadPoolExecutor(len(of_clients)) as pool:
        parts = list(pool.map(client, of_clients))
    return [each for part in parts for each in part], time.perf_counter() - began


def figures(found: Asked, took: float) -> dict[str, Any]:
    answered = 1000 * np.array([seconds for status, seconds in found if status == 200])
    return {
        "statuses": dict(Counter(str(status) for status, _ in found)),
        "p50": float(np.median(answered)),
        "p95": float(np.quantile(answered, 0.95)),
        "max": float(answered.max()),
        "rate": len(answered) / took,
    }


if __name__ == "__main__":
    main()
