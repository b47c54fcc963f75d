"""Features of any number in the order of their place: large ones first, then along a Hilbert curve over the globe.

What lies together is stored together, so that a tile's neighbourhood is a few row groups of a map's table. Sorted runs
that do not fit in memory wait in temporary files, and are merged one range of the order after the other.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from urbancross.maps.features import SCHEMA, boxes

RUN_BYTES = 128 << 20  # of features held in memory before they are sorted and put aside
PART_BYTES = 64 << 20  # of features in one part of the table
SAMPLED = 64  # every so many-th key of a run says where the parts are cut
BITS = 16  # of the curve, for longitude and latitude each
LEVELS = 9  # from features as large as the globe, each a quarter of the last one's side, to those below 500 m

Run = tuple[np.ndarray, pa.Table]  # sorted keys, and the rows they belong to


def in_order(
    tables: Iterable[pa.Table], run_bytes: int | None = None, part_bytes: int | None = None
) -> Iterator[pa.Table]:
    """The rows of all tables in order, in parts; equal places stay in the order in which they came.

    Memory holds one run, or one part. The order does not depend on the sizes.
    """
    run_bytes, part_bytes = run_bytes or RUN_BYTES, part_bytes or PART_BYTES
    with tempfile.TemporaryDirectory(prefix="urbancross-map-") as folder:
        runs: list[Run] = []
        held: list[pa.Table] = []
        total = size = 0
        for table in tables:
            if not table.num_rows:
                continue
            held.append(table)
            size += table.nbytes
            total += table.nbytes
            if size >= run_bytes:
                runs.append(_put_aside(_sorted(held), Path(folder) / f"run-{len(runs)}"))
                held, size = [], 0
        if held:
            runs.append(_sorted(held))
        del held
        yield from _merged(runs, max(-(-total // part_bytes), 1))


def _sorted(tables: Sequence[pa.Table]) -> Run:
    table = pa.concat_tables(tables)
    keys = keys_of(boxes(table))
    order = np.argsort(keys, kind="stable")
    return keys[order], table.take(pa.array(order))


def _put_aside(run: Run, path: Path) -> Run:
    """The same run, read from files as it is needed."""
    np.save(path.with_suffix(".npy"), run[0])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(run[1].combine_chunks())
    return np.load(path.with_suffix(".npy"), mmap_mode="r"), pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _merged(runs: Sequence[Run], parts: int) -> Iterator[pa.Table]:
    if len(runs) == 1 and parts == 1:
        yield runs[0][1]
        return
    sample = np.sort(np.concatenate([keys[::SAMPLED] for keys, _ in runs])) if runs else np.empty(0, np.uint64)
    cuts = np.unique(sample[np.arange(1, parts) * len(sample) // parts]) if len(sample) else sample
    starts = [0] * len(runs)
    for cut in [*cuts, None]:
        stops = [len(keys) if cut is None else int(np.searchsorted(keys, cut)) for keys, _ in runs]
        ranges = list(zip(runs, starts, stops, strict=True))
        starts = stops
        if any(start < stop for _, start, stop in ranges):
            keys = np.concatenate([keys[start:stop] for (keys, _), start, stop in ranges])
            rows = pa.concat_tables([rows.slice(start, stop - start) for (_, rows), start, stop in ranges])
            yield rows.take(pa.array(np.argsort(keys, kind="stable")))


def keys_of(boxes: np.ndarray) -> np.ndarray:
    """`[N]` uint64 by which features are sorted, from their boxes `[N, 4]` in degrees."""
    west, south, east, north = boxes.T
    side = np.maximum(np.maximum(east - west, north - south), 1e-12)
    level = np.clip(np.ceil(np.log(360 / side) / np.log(4)), 0, LEVELS).astype(np.uint64)
    last = (1 << BITS) - 1
    x = np.clip(((west + east) / 2 + 180) / 360 * last, 0, last).astype(np.int64)
    y = np.clip(((south + north) / 2 + 90) / 180 * last, 0, last).astype(np.int64)
    return (level << np.uint64(2 * BITS)) | hilbert(x, y).astype(np.uint64)


def hilbert(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far along the curve through a grid of `2^BITS` by `2^BITS` cells each cell lies."""
    x, y, far = x.copy(), y.copy(), np.zeros(len(x), np.int64)
    for bit in reversed(range(BITS)):
        step = 1 << bit
        right, upper = (x & step) > 0, (y & step) > 0
        far += step * step * ((3 * right) ^ upper)
        turn = ~upper
        flip = turn & right
        x[flip], y[flip] = step - 1 - (x[flip] & (step - 1)), step - 1 - (y[flip] & (step - 1))
        x[turn], y[turn] = y[turn] & (step - 1), x[turn] & (step - 1)
    return far
