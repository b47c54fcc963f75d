"""How fast does an index answer, with what recall and memory, beside LanceDB, faiss IVF-PQ and usearch HNSW?

    python benchmarks/index.py --seed-archive A --embeddings NAME --out FOLDER [--tiles 1000000] [--rivals PYTHON]

Vectors and captions of a real archive are grown to so many: each new vector lies between a real one and one of its 50
nearest, with noise of a quarter of its length. The tiles lie on the ground scene by scene. Queries are captions that
the seed keeps back. `urbancross index` runs as its users run it, gate and all; rivals build from the same array, in an
environment of their own (`pip install lancedb usearch faiss-cpu`), and are asked with each of several settings.
Compared is the cheapest setting of each that reaches a recall@10. Memory is of a fresh process after all queries: what
it holds itself, and with the files that are mapped.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

NEAR, NOISE, SHARD, SCENE, TOP = 50, 0.25, 2048, 4000, 10
QUERIES, SIDE = 400, 0.01  # degrees that a tile is wide
LEVELS = (0.95, 0.98)
BOX = 0.01  # of the area
CONTENDERS = ("urbancross", "lancedb", "faiss IVF-PQ", "usearch HNSW")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed-archive", required=True)
    parser.add_argument("--embeddings")
    parser.add_argument("--out", required=True)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", help="a Python that has lancedb, usearch and faiss; default: urbancross alone")
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "STEP"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    home = Path(told.out).absolute()
    if told.one:
        contender, step = told.one
        print(json.dumps((build if step == "build" else ask)(home, contender)))
        return
    if not (home / "truth.npy").exists():
        grow(told.seed_archive, told.embeddings, home, told.tiles)
    names = CONTENDERS if told.rivals else CONTENDERS[:1]
    python = {name: sys.executable if name == "urbancross" else told.rivals for name in names}

    def one(name: str, step: str) -> dict[str, Any]:
        command = [python[name], __file__, "--seed-archive", "-", "--out", str(home), "--one", name, step]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        return json.loads(out.splitlines()[-1])

    built = {}
    for name in names:
        kept = home / f"{name.replace(' ', '-')}.built.json"
        if not kept.exists():
            kept.write_text(json.dumps(one(name, "build")))
        built[name] = json.loads(kept.read_text())
    rounds = [{name: one(name, "ask") for name in names} for _ in range(told.rounds)]
    (home / "result.json").write_text(json.dumps({"built": built, "rounds": rounds}, indent=1))
    if rounds:
        show(names, built, rounds)


def show(names: tuple[str, ...], built: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    for level in LEVELS:
        heads = (
            "index",
            "setting",
            "recall@10",
            "p50 ms",
            "p95 ms",
            "of urbancross",
            "own MiB",
            "with maps",
            "disk MiB",
        )
        print(f"\nrecall@10 of at least {level}\n")
        print("| " + " | ".join((*heads, "build s")) + " |\n" + "|---" * (len(heads) + 1) + "|")
        base = None
        for name in names:
            by_setting = {
                setting: (found["recall"], median(rounds, name, setting, "p50"), median(rounds, name, setting, "p95"))
                for setting, found in rounds[0][name]["settings"].items()
            }
            good = sorted(
                (p50, p95, recall, setting) for setting, (recall, p50, p95) in by_setting.items() if recall >= level
            )
            if not good:
                setting, (recall, p50, p95) = max(by_setting.items(), key=lambda item: item[1][0])
                good = [(p50, p95, recall, f"{setting}: not reached")]
            p50, p95, recall, setting = good[0]
            base = base or p50
            held = rounds[0][name]
            cells = (
                name,
                setting,
                f"{recall:.3f}",
                f"{p50:.2f}",
                f"{p95:.2f}",
                f"{p50 / base:.2f}",
                f"{held['own']:,.0f}",
            )
            print(
                "| "
                + " | ".join(
                    (*cells, f"{held['mapped']:,.0f}", f"{built[name]['disk']:,.0f}", f"{built[name]['s']:,.0f}")
                )
                + " |"
            )
    print("\nin a box of 1 % of the area\n\n| index | setting | recall@10 | p50 ms |\n|---|---|---|---|")
    for name in names:
        for setting, found in rounds[0][name]["box"].items():
            p50 = statistics.median(told[name]["box"][setting]["p50"] for told in rounds)
            print(f"| {name} | {setting} | {found['recall']:.3f} | {p50:.2f} |")


def median(rounds: list[dict[str, Any]], name: str, setting: str, figure: str) -> float:
    return statistics.median(told[name]["settings"][setting][figure] for told in rounds)


def grow(seed: str, embeddings: str | None, home: Path, count: int) -> None:
    """Write the archive, and the same as arrays for the rivals: vectors, queries, truth, box and truth within it."""
    import pyarrow as pa

    from urbancross import schemas, storage, tables
    from urbancross.archive import Archive

    home.mkdir(parents=True, exist_ok=True)
    old, rng = Archive(seed, embeddings=embeddings, indexed=False), np.random.default_rng(0)
    real, captions, kept_back = [], [], []
    table = tables.table_of(old.place, "captions", None, "captions")
    for name in storage.shards(old.place / old.table):
        shard = tables.read_aligned(old.place, {"tiles": ["split"], table: ["captions"], old.table: ["vector"]}, name)
        real += [np.asarray(vector, np.float32) for vector in shard[old.table]["vector"].to_pylist()]
        captions += [told[:1] for told in shard[table]["captions"].to_pylist()]
        kept_back += [split != "train" for split in shard["tiles"]["split"].to_pylist()]
    base = np.stack(real)
    near = np.argsort(-(base @ base.T), axis=1)[:, 1 : NEAR + 1]
    vectors = np.lib.format.open_memmap(home / "vectors.npy", "w+", np.float32, (count, base.shape[1]))
    boxes = np.lib.format.open_memmap(home / "bounds.npy", "w+", np.float64, (count, 4))
    maker = storage.made_by(storage.read_schema(old.place / old.table / storage.shards(old.place / old.table)[0]))
    schema = storage.with_made_by(schemas.embeddings(base.shape[1]), maker)
    texts = [captions[i][0] for i in rng.permutation(np.flatnonzero(kept_back))[:QUERIES]]
    rows: dict[str, int] = {}
    for number, start in enumerate(range(0, count, SHARD)):
        ids = np.arange(start, min(start + SHARD, count))
        one = rng.integers(len(base), size=len(ids))
        other, share = near[one, rng.integers(NEAR, size=len(ids))], rng.uniform(0.3, 1, (len(ids), 1))
        grown = share * base[one] + (1 - share) * base[other]
        grown += rng.normal(size=grown.shape) * NOISE / np.sqrt(base.shape[1])
        vectors[ids] = grown / np.linalg.norm(grown, axis=1, keepdims=True)
        boxes[ids] = where(ids)
        name = f"part-{number:05d}.parquet"
        told = [
            {"tile_id": f"t{i}", "domain": "grown", "split": "train", "bounds": boxes[i].tolist(), "datetime": "2024"}
            for i in ids
        ]
        archive = home / "archive"
        storage.publish_shard(archive / "tiles" / name, pa.Table.from_pylist(told, schema=schemas.TILES))
        of = pa.FixedSizeListArray.from_arrays(pa.array(vectors[ids].ravel()), base.shape[1])
        names = pa.array([f"t{i}" for i in ids])
        failure = pa.nulls(len(ids), pa.string())
        storage.publish_shard(archive / "embeddings@grown" / name, pa.table([names, of, failure], schema=schema))
        said = [{"tile_id": f"t{i}", "captions": captions[j]} for i, j in zip(ids, one, strict=True)]
        storage.publish_shard(archive / "captions@given" / name, pa.Table.from_pylist(said, schema=schemas.CAPTIONS))
        rows[name] = len(ids)
    storage.write_json(home / "archive" / "plan" / ".rows.json", rows)
    queries = old.encoder.encode_texts(texts)
    np.save(home / "queries.npy", queries)
    np.save(home / "truth.npy", truth(vectors, queries))
    inside = np.flatnonzero(meet(boxes, box_of(boxes)))
    np.save(home / "truth-in-box.npy", inside[truth(vectors[inside], queries)])
    print(f"{len(inside):,} of {count:,} tiles in the box", file=sys.stderr)


def where(ids: np.ndarray) -> np.ndarray:
    """Bounds `[n, 4]`: scenes of 4,000 tiles side by side, 25 in a row."""
    scene, tile = ids // SCENE, ids % SCENE
    west = (scene % 25) * 80 * SIDE + (tile % 80) * SIDE
    south = (scene // 25) * 50 * SIDE + (tile // 80) * SIDE
    return np.stack([west, south, west + SIDE, south + SIDE], axis=1)


def box_of(boxes: np.ndarray) -> tuple[float, float, float, float]:
    """A hundredth of the area, in its middle."""
    west, south, east, north = *boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)
    x, y, w, h = (west + east) / 2, (south + north) / 2, (east - west) * BOX**0.5 / 2, (north - south) * BOX**0.5 / 2
    return float(x - w), float(y - h), float(x + w), float(y + h)


def meet(boxes: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    return (boxes[:, 0] <= box[2]) & (boxes[:, 2] >= box[0]) & (boxes[:, 1] <= box[3]) & (boxes[:, 3] >= box[1])


def truth(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Ids `[Q, 10]` of the nearest, every vector compared."""
    scores, ids = np.full((len(queries), 1), -np.inf, np.float32), np.zeros((len(queries), 1), np.int64)
    for start in range(0, len(vectors), 100_000):
        new = queries @ vectors[start : start + 100_000].T
        some = np.argpartition(-new, TOP, axis=1)[:, :TOP] if new.shape[1] > TOP else np.argsort(-new, axis=1)
        scores = np.concatenate([scores, np.take_along_axis(new, some, axis=1)], axis=1)
        ids = np.concatenate([ids, some + start], axis=1)
        order = np.argsort(-scores, axis=1)[:, :TOP]
        scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
    return ids


Search = Callable[[np.ndarray], np.ndarray]  # a query [D] to ids [10]


def build(home: Path, contender: str) -> dict[str, float]:
    began, place = time.monotonic(), home / contender.replace(" ", "-")
    if contender == "urbancross":
        place = home / "archive" / "index@grown"
        command = [sys.executable, "-m", "urbancross.cli", "index", "--archive", str(home / "archive"), "--rebuild"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    else:
        place.mkdir(exist_ok=True)
        {"lancedb": lancedb, "faiss IVF-PQ": faiss_ivf_pq, "usearch HNSW": usearch}[contender](home, place, make=True)
    took = time.monotonic() - began
    return {"s": took, "disk": sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 2**20}


def ask(home: Path, contender: str) -> dict[str, Any]:
    """Recall and latency with each setting, and in the box; memory at the end."""
    queries, wanted, boxed = (np.load(home / f"{name}.npy") for name in ("queries", "truth", "truth-in-box"))
    makers = {"urbancross": ours, "lancedb": lancedb, "faiss IVF-PQ": faiss_ivf_pq, "usearch HNSW": usearch}
    settings, box = makers[contender](home, home / contender.replace(" ", "-"), make=False)
    found = {name: timed(search, queries, wanted) for name, search in settings}
    held = memory()
    return {"settings": found, "box": {name: timed(search, queries[:100], boxed) for name, search in box}, **held}


def timed(search: Search, queries: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    for query in queries[:20]:
        search(query)
    hits, took = 0, []
    for query, ids in zip(queries, wanted, strict=False):
        began = time.perf_counter()
        found = search(query)
        took.append(1000 * (time.perf_counter() - began))
        hits += len(set(np.asarray(found).tolist()) & set(ids.tolist()))
    return {"recall": hits / TOP / len(queries), "p50": float(np.median(took)), "p95": float(np.quantile(took, 0.95))}


def memory() -> dict[str, float]:
    lines = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return {"own": int(lines["Anonymous"].split()[0]) / 1024, "mapped": int(lines["Rss"].split()[0]) / 1024}


Settings = Iterator[tuple[str, Search]]


def ours(home: Path, place: Path, make: bool) -> tuple[Settings, Settings]:
    from urbancross.index.facts import Filters
    from urbancross.index.folder import Index

    index = Index.at(home / "archive", "embeddings@grown")
    assert index is not None
    told = dict(index.manifest)

    def search(query: np.ndarray, filters: Filters | None = None) -> np.ndarray:
        return np.array([number(*found[1:]) for found in index.best(query, TOP, filters).found])

    def number(shard: str, row: int) -> int:
        return int(shard[5:10]) * SHARD + row

    def with_settings() -> Settings:
        plans = [(told["probes"], told["rerank"]), *itertools.product((4, 8, 16, 32, 64), (50, 100, 200, 400))]
        for i, (probes, rerank) in enumerate(plans):
            index.manifest |= {"probes": probes, "rerank": rerank}
            yield f"probes {probes}, rerank {rerank}" + ("" if i else ", as built"), search
        index.manifest |= told

    box = Filters(bbox=box_of(np.load(home / "bounds.npy", mmap_mode="r")))
    return with_settings(), iter([("as built", lambda query: search(query, box))])


def lancedb(home: Path, place: Path, make: bool) -> tuple[Settings, Settings]:
    import lancedb
    import pyarrow as pa

    base = lancedb.connect(place)
    if make:
        vectors, boxes = np.load(home / "vectors.npy", mmap_mode="r"), np.load(home / "bounds.npy", mmap_mode="r")

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(vectors), 50_000):
                some = np.ascontiguousarray(vectors[start : start + 50_000])
                ids = np.arange(start, start + len(some))
                column = pa.FixedSizeListArray.from_arrays(pa.array(some.ravel()), some.shape[1])
                bounds = [pa.array(np.ascontiguousarray(boxes[ids, i])) for i in range(4)]
                yield pa.record_batch(
                    [pa.array(ids), column, *bounds], ["id", "vector", "west", "south", "east", "north"]
                )

        first = next(batches())
        table = base.create_table("tiles", batches(), schema=first.schema)
        table.create_index(metric="cosine", vector_column_name="vector")
        return iter(()), iter(())
    table = base.open_table("tiles")
    box = box_of(np.load(home / "bounds.npy", mmap_mode="r"))
    within = f"west <= {box[2]} AND east >= {box[0]} AND south <= {box[3]} AND north >= {box[1]}"

    def search(probes: int | None, refine: int | None, where: str | None = None) -> Search:
        def one(query: np.ndarray) -> np.ndarray:
            asked = table.search(query).distance_type("cosine").limit(TOP).select(["id"])
            asked = asked if probes is None else asked.nprobes(probes)
            asked = asked if refine is None else asked.refine_factor(refine)
            asked = asked if where is None else asked.where(where, prefilter=True)
            return asked.to_arrow()["id"].to_numpy()

        return one

    plans = [(20, 10), (20, 40), (50, 20), (50, 40), (100, 100)]
    settings = [("defaults", search(None, None))]
    settings += [(f"nprobes {p}, refine {r}", search(p, r)) for p, r in plans]
    return iter(settings), iter(
        [("defaults", search(None, None, within)), ("nprobes 50, refine 20", search(50, 20, within))]
    )


def faiss_ivf_pq(home: Path, place: Path, make: bool) -> tuple[Settings, Settings]:
    """4,096 lists, 64 bytes a vector, the best compared in full from float16."""
    import faiss

    if make:
        vectors = np.load(home / "vectors.npy", mmap_mode="r")
        width = vectors.shape[1]
        lists = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, 4096, 64, 8, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexRefine(
            lists, faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        )
        chosen = np.sort(np.random.default_rng(0).permutation(len(vectors))[:200_000])
        index.train(np.ascontiguousarray(vectors[chosen]))
        for start in range(0, len(vectors), 50_000):
            index.add(np.ascontiguousarray(vectors[start : start + 50_000]))
        faiss.write_index(index, str(place / "faiss"))
        return iter(()), iter(())
    index = faiss.read_index(str(place / "faiss"))

    def search(probes: int, factor: int, allowed: np.ndarray | None = None) -> Search:
        def one(query: np.ndarray) -> np.ndarray:
            base = faiss.SearchParametersIVF(nprobe=probes)
            if allowed is not None:
                base.sel = faiss.IDSelectorBitmap(allowed)
            told = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=base)
            return index.search(query[None], TOP, params=told)[1][0]

        return one

    boxes = np.load(home / "bounds.npy", mmap_mode="r")
    bits = np.packbits(meet(boxes, box_of(boxes)), bitorder="little")
    plans = list(itertools.product((8, 16, 32, 64, 128), (4, 8, 16, 32)))
    box = [(f"nprobe {p}, k_factor 8", search(p, 8, bits)) for p in (64, 512)]
    return iter([(f"nprobe {p}, k_factor {k}", search(p, k)) for p, k in plans]), iter(box)


def usearch(home: Path, place: Path, make: bool) -> tuple[Settings, Settings]:
    """Its defaults: 16 neighbours, expansion 128, float16."""
    from usearch.index import Index

    width = np.load(home / "queries.npy").shape[1]
    index = Index(ndim=width, metric="ip", dtype="f16")
    if make:
        vectors = np.load(home / "vectors.npy", mmap_mode="r")
        for start in range(0, len(vectors), 50_000):
            some = np.ascontiguousarray(vectors[start : start + 50_000])
            index.add(np.arange(start, start + len(some)), some, threads=os.cpu_count() or 1)
            print(f"usearch: {start + len(some):,}", file=sys.stderr, flush=True)
        index.save(str(place / "usearch"))
        return iter(()), iter(())
    index.load(str(place / "usearch"))

    def settings() -> Settings:
        for expansion in (16, 32, 64, 96, 128, 192, 256, 384, 512):
            index.expansion_search = expansion
            yield f"expansion {expansion}", lambda query: index.search(query, TOP).keys

    return settings(), iter(())


if __name__ == "__main__":
    main()
