"""`plan`: what stages will take on this machine or cluster, from some of their tiles."""

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from urbancross import config as settings
from urbancross import forecast, storage, tables
from urbancross.command_line import from_command_line
from urbancross.config import PlanConfig, WorkersConfig
from urbancross.distributed import captioning, rebuilding
from urbancross.distributed.probing import probe
from urbancross.distributed.resources import may_grow
from urbancross.distributed.session import connect
from urbancross.distributed.stages import Stage
from urbancross.errors import ConfigError, SchemaError, UrbanCrossError
from urbancross.forecast import Forecast, Knob, Price
from urbancross.progress import say
from urbancross.runs import Balance
from urbancross.storage import Place

VERBS: dict[str, type[WorkersConfig]] = {
    "ingest": settings.IngestConfig,
    "geotag": settings.GeotagConfig,
    "caption": settings.CaptionConfig,
    "segment": settings.SegmentConfig,
    "rank": settings.RankConfig,
    "embed": settings.EmbedConfig,
    "pretrain": settings.PretrainConfig,
}
UNASKED = {
    "captions": ("geotags", "caption"),
    "segments": ("tiles", "segment"),
    "embeddings": ("tiles", "embed --checkpoint starter"),
}
KNOB_SHARE = 0.25  # of the sample on which a knob is tried
MOST_KNOBS = 2
GB = 1e9


@dataclass(frozen=True)
class Asked:
    """One table to forecast, and the settings of the run that will make it."""

    command: str
    config: Any  # a MakerConfig
    stage: Stage
    rows: dict[str, int]  # tiles of the shards that are still to be made


def run(config: PlanConfig) -> Balance:
    archive = storage.archive(config.archive)
    asked = list(what_is_asked(archive, config))
    if not asked:
        raise ConfigError(f'{archive}: nothing is unfinished; say what to forecast with --stage "VERB --FLAG ..."')
    began = time.monotonic()
    there = ray.is_initialized()
    connect()
    connect_s = 0.0 if there else time.monotonic() - began
    told, balance = list[Forecast](), Balance()
    for one in asked:
        found, tried = foretell(archive, one, config, connect_s)
        told.append(found)
        balance += tried
    first = forecast.dearest(told)
    if config.knobs:
        one = asked[told.index(first)]
        knobs, tried = try_knobs(archive, one, config, first)
        told[told.index(first)] = first = replace(first, knobs=knobs)
        balance += tried
    line = forecast.advice(first, sum(found.seconds.p50 for found in told))
    kept = {"archive": str(archive), "advice": line, "forecasts": [found.as_json() for found in told]}
    balance = balance.with_files(forecast=kept)
    if config.json_:
        counts = {name: getattr(balance, name) for name in ("read", "written", "skipped", "failed")}
        print(json.dumps(kept | {"tried": counts}, indent=2))
    else:
        show(told, config)
        print(line)
    return balance


def what_is_asked(archive: Place, config: PlanConfig) -> Iterator[Asked]:
    """The stages of `--stage`; or else what is unfinished, and what the archive has none of."""
    if config.stage:
        for text in config.stage:
            yield from of_command(archive, text)
        return
    for table in tables.of_tiles(archive):
        yield from unfinished(archive, table)
    for kind, (source, text) in UNASKED.items():
        if storage.shards(archive / source) and not storage.tables(archive, kind):
            yield from of_command(archive, text)


def unfinished(archive: Place, table: str) -> Iterator[Asked]:
    """A table that lacks shards, and says by which command it was begun."""
    begun = (tables.claimed(archive / table) or {}).get("run", {}).get("kind")
    verb = next((verb for verb, kind in VERBS.items() if kind.__name__ == begun), None)
    if verb is None or not storage.shards(archive / table):
        return
    try:
        stage = rebuilding.stage_of(archive, table)
        rows = to_do(archive, stage)
    except (ConfigError, SchemaError) as error:  # of a source that is gone, say
        say(f"note: {table} is left out: {error}")
        return
    if rows:
        yield Asked(f"{verb} ({table}, begun)", rebuilding.config_of(archive, table), stage, rows)


def of_command(archive: Place, text: str) -> Iterator[Asked]:
    """
    Raises:
        ConfigError: no verb that makes a table of one archive, or one of its sources is missing.
    """
    try:
        verb, *flags = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--stage {text!r}: {error}") from None
    if verb not in VERBS:
        raise ConfigError(f"--stage {text!r}: {verb} makes no table of one archive; one of {', '.join(VERBS)}")
    told: Any = from_command_line(
        VERBS[verb], [*flags, "--archive", str(archive)], f'urbancross plan: --stage "{verb}"'
    )
    if isinstance(told, settings.CaptionConfig):
        told = captioning.settled(told)
    stages = list(rebuilding.STAGES[type(told)](told, archive))
    if isinstance(told, settings.GeotagConfig):
        needs_map(archive, stages[0])
    for stage in stages:
        rows = to_do(archive, stage)
        if rows:
            yield Asked(text, told, stage, rows)
        else:
            say(f"{stage.output}: nothing is left to be made")


def needs_map(archive: Place, stage: Stage) -> None:
    table = stage.notes["map"]
    if not storage.shards(archive / table):
        raise ConfigError(
            f"{archive} has no {table} yet: geotag reads its map first, which no sample tells the time of; run geotag"
        )


def to_do(archive: Place, stage: Stage) -> dict[str, int]:
    """Names and tiles of the shards that a stage has still to make.

    Raises:
        ConfigError: one of its sources is missing.
        SchemaError: or is of another schema.
    """
    first = next(iter(stage.sources))
    names = tables.require_shards(archive, first)
    for source, columns in stage.sources.items():
        tables.check_source(archive, source, columns, names)
    done = set(storage.shards(archive / stage.output))
    return {name: rows for name, rows in tables.row_counts(archive, first, names).items() if name not in done}


def foretell(archive: Place, one: Asked, config: PlanConfig, connect_s: float) -> tuple[Forecast, Balance]:
    tried, balance = probe(
        archive,
        tried_as(one),
        one.rows,
        one.config,
        config.sample,
        config.minutes,
        connect_s,
        config.seed,
    )
    shards = np.array(list(one.rows.values()))
    if config.tiles is not None:
        whole, rest = divmod(config.tiles, int(shards.max()))
        shards = np.append(np.full(whole, shards.max()), [rest] * (rest > 0))
    found = forecast.forecast(
        tried,
        shards,
        one.config.gpus_per_worker,
        Price(config.dollars_per_hour, config.dollars_per_gpu_hour),
        config.seed,
        config.workers or (one.config.workers if may_grow() else None),
        table=one.stage.output,
        command=one.command,
        maker=tables.digest_of_maker(one.stage.maker(archive)),
        assumed=config.tiles is not None or config.workers is not None,
        asked=one.config.workers,
    )
    return found, balance


def tried_as(one: Asked) -> Stage:
    """SAM goes tile by tile, minutes each on a CPU: there batches are as small as its encoder takes them."""
    if isinstance(one.config, settings.SegmentConfig) and one.config.engine == "sam":
        return replace(one.stage, batch_tiles=min(one.stage.batch_tiles, max(2, one.config.encoder_batch)))
    return one.stage


def try_knobs(archive: Place, one: Asked, config: PlanConfig, whole: Forecast) -> tuple[list[Knob], Balance]:
    """The same stage with one setting otherwise, for each that may cost most: its share of the time a tile."""
    found, balance = list[Knob](), Balance()
    for field, now, value in knobs_of(one.config)[:MOST_KNOBS]:
        told = one.config.model_copy(update={field: value})
        stages = [stage for stage in rebuilding.STAGES[type(told)](told, archive) if same_kind(stage, one.stage)]
        sample = max(int(config.sample * KNOB_SHARE), 1)
        other = replace(one, config=told, stage=stages[0])
        flag = f"--{field.replace('_', '-')}"
        try:
            tried, made = foretell(archive, other, config.model_copy(update={"sample": sample}), 0.0)
        except UrbanCrossError as error:  # out of memory, say; the forecast itself stands
            say(f"note: {flag} {value} could not be tried: {error}")
            continue
        balance += made
        found.append(Knob(flag, str(now), str(value), tried.tile_s / whole.tile_s))
    return found, balance


def same_kind(stage: Stage, other: Stage) -> bool:
    return stage.output.partition("@")[0] == other.output.partition("@")[0]


def knobs_of(config: WorkersConfig) -> list[tuple[str, Any, Any]]:
    """Settings of a run that may move its time: the field, its value, and another one to try."""
    found: list[tuple[str, Any, Any]] = []
    if isinstance(config, settings.SegmentConfig) and config.engine == "sam":
        points = config.points_per_side or (16 if config.mode == "fast" else 32)
        found = [("points_per_side", points, max(points // 2, 1))]
        if config.mode == "exact":
            found.append(("mode", "exact", "fast"))
    elif isinstance(config, settings.CaptionConfig):
        if config.engine == "template":
            count = config.captions_per_tile or 5
            found = [("captions_per_tile", count, max(count // 2, 1))]
        else:
            found = [("max_tokens", config.max_tokens, max(config.max_tokens // 2, 1))]
            if config.engine == "openai":
                found.append(("concurrency", config.concurrency, config.concurrency * 2))
    elif isinstance(config, settings.EmbedConfig):
        if config.segments is not None:
            found = [("max_segments", config.max_segments, max(config.max_segments // 2, 1))]
        found.append(("batch_tiles", config.batch_tiles, max(config.batch_tiles // 4, 1)))
    elif isinstance(config, settings.RankConfig):
        found = [("batch_tiles", config.batch_tiles, config.batch_tiles * 4)]
    elif isinstance(config, settings.PretrainConfig):
        found = [("max_segments", config.max_segments, max(config.max_segments // 2, 1))]
    elif isinstance(config, settings.GeotagConfig):
        found = [("nearby", config.nearby, 0.0)]
    return [knob for knob in found if knob[1] != knob[2]]


def show(told: list[Forecast], config: PlanConfig) -> None:
    """P50 and P90 of each stage, and their sums where there are several."""
    priced = config.dollars_per_hour > 0 or config.dollars_per_gpu_hour > 0
    grid = Table("table", "tiles", "workers", "tried", "s a tile", "hours", "GPU-hours", *["dollars"] * priced, "GB")
    for column in grid.columns[1:]:
        column.justify = "right"
    for found in told:
        row = [
            escape(found.table),
            f"{found.tiles:,}",
            f"{found.workers:,}",
            f"{found.probed:,}",
            f"{found.tile_s:.3g}",
        ]
        grid.add_row(*row, *figures([found], priced))
    if len(told) > 1:
        grid.add_section()
        grid.add_row("all, one after the other", "", "", "", "", *figures(told, priced))
    grid.caption = "P50, P90 in brackets; of several stages their sums"
    Console(width=None if Console().is_terminal else 160).print(grid)


def figures(told: list[Forecast], priced: bool) -> list[str]:
    def both(name: str, unit: float = 1.0) -> str:
        p50, p90 = (sum(getattr(getattr(found, name), level) for found in told) / unit for level in ("p50", "p90"))
        return f"{p50:,.3g} ({p90:,.3g})" if p50 < 1000 else f"{p50:,.0f} ({p90:,.0f})"

    dollars = [both("dollars")] if priced else []
    return [both("hours"), both("gpu_hours"), *dollars, both("size_bytes", GB)]
