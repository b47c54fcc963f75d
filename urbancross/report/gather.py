"""`report`: what two archives and two checkpoints hold, gathered for the page."""

import json
from collections import Counter
from typing import Any

import numpy as np

from urbancross import gaps, runs, storage, tables, verdict
from urbancross.config import ReportConfig
from urbancross.embedding import looks
from urbancross.errors import ConfigError
from urbancross.evidence import Evidence
from urbancross.index.exact import best
from urbancross.index.facts import Filters
from urbancross.models import checkpoints
from urbancross.report.contents import AFTER, BEFORE, DomainGap, Hit, Report
from urbancross.report.page import render
from urbancross.storage import Place

SHOWN_QUERIES, SHOWN_HITS = 12, 10
GAP_TILES = 1000  # per domain, in the figure and its statistics


def run(config: ReportConfig) -> None:
    source, target = storage.archive(config.source, "--source"), storage.archive(config.target, "--target")
    models = {BEFORE: checkpoints.resolve(config.before), AFTER: checkpoints.resolve(config.after)}
    told = {
        BEFORE: storage.read_json(storage.local(config.metrics_before), "--metrics-before"),
        AFTER: storage.read_json(storage.local(config.metrics_after), "--metrics-after"),
    }
    for flag, found in zip(("--metrics-before", "--metrics-after"), told.values(), strict=True):
        if not isinstance(found, dict) or not {"mR", "protocol", "split", "gallery", "captions"} <= found.keys():
            raise ConfigError(f"{flag}: not what urbancross evaluate --out writes; give its metrics.json")
    first = told[BEFORE]
    split = config.split or first.get("split")
    queries = config.queries or some_captions(target, first["captions"], split, config.seed)
    page = Report(
        title=f"{source.name} to {target.name}",
        subtitle=f"{target.name}, split {split}: {first['gallery']['tiles']:,} tiles, protocol {first['protocol']}",
        advice=advice_of(models[AFTER]),
        balances=[*runs.balances(source), *runs.balances(target)],
        failures=[*failures(source), *failures(target)],
        metrics=told,
        curves={"pretrain": events_of(models[BEFORE]), "adapt": events_of(models[AFTER])},
        gaps={name: gap(source, target, model, config.seed) for name, model in models.items()},
        queries=hits(target, models, queries, split),
        settings={"pretrain": settings_of(models[BEFORE]), "adapt": settings_of(models[AFTER])},
    )
    out = storage.local(config.out)
    storage.replace(out, render(page).encode())
    print(f"report: {out}")


def embeddings_of(archive: Place, model: checkpoints.Model) -> str:
    """The embeddings table of a model.

    Raises:
        ConfigError: there is none yet.
    """
    table = tables.embeddings_by(archive, model.fingerprint)
    if table is None:
        raise ConfigError(
            f"{archive} has no embeddings by {model.name}; make them with: "
            f"urbancross embed --archive {archive} --checkpoint {model.name}"
        )
    return table


def some_captions(archive: Place, table: str, split: str | None, seed: int) -> list[str]:
    """A dozen different captions of a split, chosen by seed."""
    found: set[str] = set()
    for name in storage.shards(archive / table):
        shard = tables.read_aligned(archive, {"tiles": ["split"], table: ["captions"]}, name)
        for inside, lines in zip(
            shard["tiles"]["split"].to_pylist(), shard[table]["captions"].to_pylist(), strict=True
        ):
            if split in (None, inside):
                found.update((lines or [])[:1])
    order = np.random.default_rng(seed).permutation(len(found))
    return [sorted(found)[i] for i in order[:SHOWN_QUERIES]]


def failures(archive: Place) -> list[dict[str, Any]]:
    """Why tiles have no result, by table, the most frequent first."""
    out = []
    for table in tables.of_tiles(archive):
        if table == "plan":  # its failures are those of `tiles` too
            continue
        reasons = Counter(
            reason
            for name in storage.shards(archive / table)
            for reason in storage.read_shard(archive / table / name, ["failure"])["failure"].to_pylist()
            if reason is not None
        )
        out += [
            {"archive": archive.name, "table": table, "reason": reason, "count": count}
            for reason, count in reasons.most_common(20)
        ]
    return out


def gap(source: Place, target: Place, model: checkpoints.Model, seed: int) -> DomainGap:
    """How far apart an encoder puts the tiles of two archives."""
    (a, places_a), (b, places_b) = (
        vectors_of(archive, embeddings_of(archive, model), seed) for archive in (source, target)
    )
    a, b = (looks(vectors, checkpoints.width_of(model)) for vectors in (a, b))
    distance = gaps.proxy_a_distance(a, b, places_a, places_b, seed)
    discrepancy, p = gaps.mmd2(a, b, seed=seed)
    return DomainGap(a, b, distance, discrepancy, p)


def vectors_of(archive: Place, table: str, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Up to GAP_TILES vectors `[n, D]` of an embeddings table, chosen by seed, and the scene of each, if it has one."""
    vectors: list[np.ndarray] = []
    scenes: list[str] = []
    for name in storage.shards(archive / table):
        shard = tables.read_aligned(archive, {"tiles": ["crs"], table: ["vector"]}, name)
        done = shard[table]["vector"].is_valid()
        vectors += [np.asarray(vector, np.float32) for vector in shard[table]["vector"].filter(done).to_pylist()]
        told = shard["tiles"].filter(done).select(["tile_id", "crs"]).to_pylist()
        scenes += [row["tile_id"].rpartition("/")[0] if row["crs"] else "" for row in told]
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:GAP_TILES])
    chosen = np.array(scenes)[rows]
    by_scene = len(set(chosen)) > 1 and "" not in chosen
    return np.stack([vectors[i] for i in rows]), chosen if by_scene else None


def hits(
    archive: Place, models: dict[str, checkpoints.Model], queries: list[str], split: str | None
) -> dict[str, dict[str, list[Hit]]]:
    """The best tiles per query and model, with their pictures."""
    out: dict[str, dict[str, list[Hit]]] = {query: {} for query in queries}
    shown = Evidence(archive)
    for name, model in models.items():
        vectors = checkpoints.load(model).encode_texts(queries)
        for query, vector in zip(queries, vectors, strict=True):
            found = best(archive, embeddings_of(archive, model), vector, SHOWN_HITS, Filters(split=split)).found
            out[query][name] = [
                Hit(
                    hit.tile_id,
                    hit.score,
                    shown.picture(hit.shard, hit.row) or b"",
                    hit.captions[0] if hit.captions else "",
                )
                for hit in shown.hits(found, vector)
            ]
    return out


def events_of(model: checkpoints.Model) -> list[dict[str, Any]]:
    folder = checkpoints.files_of(model)
    return runs.read_events(folder / checkpoints.EVENTS) if folder else []


def advice_of(model: checkpoints.Model) -> str:
    """The verdict that an adaptation left in its checkpoint, if there is one."""
    folder = checkpoints.files_of(model)
    told = storage.json_or_none(folder / verdict.FILE, "--after") if folder else None
    return str(verdict.Verdict(**told)) if told else ""


def settings_of(model: checkpoints.Model) -> dict[str, Any]:
    folder = checkpoints.files_of(model)
    return json.loads((folder / checkpoints.DESCRIPTION).read_text())["settings"] if folder else {}
