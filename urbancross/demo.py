"""`demo`: the whole road, from scenes to search, on two countries; every step is a verb that can be run alone."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from urbancross import cli, storage
from urbancross.config import DemoConfig
from urbancross.errors import ConfigError
from urbancross.report.contents import AFTER, BEFORE
from urbancross.report.words import interval, percent
from urbancross.tables import has_split
from urbancross.world import NORTHLAND, SOUTHLAND, Country, write_country

# What a person would ask of the drawn countries; words, not tags.
QUERIES = [
    "boats in a harbour",
    "an airport runway",
    "a sports stadium with a running track",
    "storage tanks",
    "a forest",
    "farmland",
    "a lake",
    "houses along residential streets",
    "large industrial buildings",
    "a cemetery",
    "railway tracks",
    "a golf course",
]


def run(told: DemoConfig) -> None:
    began = time.monotonic()
    if (told.source is None) != (told.target is None):
        raise ConfigError("give both --source and --target, or neither for two drawn countries")
    home = storage.local(told.out)
    refuse_other_demo(home, told)
    if told.source is not None and told.target is not None:
        source, target = (given(place, home, told) for place in (told.source, told.target))
        queries, split = None, "test" if has_split(target, "test") else "valid"
    else:
        source, target = (drawn(country, home, told) for country in (NORTHLAND, SOUTHLAND))
        queries, split = QUERIES, "test"
    metrics = learn_and_measure(source, target, split, home, told)
    report = home / "report.html"
    step(
        "report",
        source=str(source),
        target=str(target),
        before=str(home / "source-only"),
        after=str(home / "adapted"),
        metrics_before=str(home / "metrics-source-only.json"),
        metrics_after=str(home / "metrics-adapted.json"),
        queries=queries,
        out=str(report),
        seed=told.seed,
    )
    step("search", archive=str(target), text=told.query, embeddings="adapted")
    show(metrics)
    print(f"report: {report}")
    print(f"all in {time.monotonic() - began:.0f} s")


def refuse_other_demo(home: Path, told: DemoConfig) -> None:
    """One folder holds one demo: worlds of two sizes or seeds would mix unseen."""
    settings = told.model_dump(include={"source", "target", "scenes", "segments", "seed"})
    if (home / "demo.json").exists():
        found = storage.read_json(home / "demo.json", "demo")
        for key, value in settings.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"--out {told.out} holds a demo with {key}={found.get(key)}, now {key}={value}; give another --out"
                )
    else:
        for place in (told.source, told.target):
            if place is not None and not storage.local(place).exists():
                raise ConfigError(f"{place}: no such file or folder; give a captioned set")
        storage.write_json(home / "demo.json", settings)


def given(place: str, home: Path, told: DemoConfig) -> Path:
    """A captioned set as an archive."""
    name = Path(place).absolute().name
    archive = home / name
    step("ingest", source=place, archive=str(archive), domain=name, shard_tiles=512, workers=told.workers)
    segment(archive, told)
    return archive


def drawn(country: Country, home: Path, told: DemoConfig) -> Path:
    """A drawn country as an archive: scenes to tiles, the map to geo-tags, geo-tags to captions."""
    scenes = home / "world" / country.name
    if not scenes.is_dir():
        print(f"drawing {country.name}: {told.scenes} scenes and a map", flush=True)
        with storage.publish_folder(scenes) as folder:
            write_country(country, folder, scenes=told.scenes, scene_px=1344, seed=told.seed)
    archive = home / country.name
    common: dict[str, Any] = {"archive": str(archive), "workers": told.workers}
    step("ingest", source=str(scenes / "scenes"), domain=country.name, shard_tiles=256, seed=told.seed, **common)
    step("geotag", osm=str(scenes / "map.osm"), **common)
    step("caption", engine="template", seed=told.seed, **common)
    segment(archive, told)
    return archive


def segment(archive: Path, told: DemoConfig) -> None:
    if told.segments != "none":
        step("segment", archive=str(archive), engine=told.segments, workers=told.workers)


def learn_and_measure(
    source: Path, target: Path, split: str, home: Path, told: DemoConfig
) -> dict[str, dict[str, Any]]:
    """Pretrain on the source, adapt to the target, embed both with both models, evaluate both on the target."""
    before, after = str(home / "source-only"), str(home / "adapted")
    common: dict[str, Any] = {"workers": told.workers, "seed": told.seed, "max_segments": 2}
    step("pretrain", archive=str(source), out=before, segments=told.segments, head_epochs=told.head_epochs, **common)
    step(
        "adapt", checkpoint=before, source=str(source), target=str(target), out=after, segments=told.segments, **common
    )
    for archive in (source, target):
        for checkpoint in (before, after):
            step("embed", archive=str(archive), checkpoint=checkpoint, workers=told.workers)
    metrics = {}
    for name, checkpoint in ((BEFORE, before), (AFTER, after)):
        out = home / f"metrics-{Path(checkpoint).name}.json"
        step("evaluate", archive=str(target), checkpoint=checkpoint, split=split, out=str(out), workers=told.workers)
        metrics[name] = storage.read_json(out, "metrics")
    return metrics


def step(verb: str, **settings: Any) -> None:
    """Run one verb as the command line would, and say so."""
    places = [settings.get("archive") or settings.get("target"), settings.get("checkpoint")]
    print(" ".join([f"— {verb}", *(str(place) for place in places if place)]), flush=True)
    cli.call(verb, cli.VERBS[verb].kind(**settings))


def show(metrics: dict[str, dict[str, Any]]) -> None:
    """Print source-only and adapted side by side."""
    first = metrics[BEFORE]
    table = Table(
        title=f"retrieval on the target, split {first['split']}, protocol {first['protocol']}", title_justify="left"
    )
    for column in (
        "model",
        "mR",
        "95 % interval",
        "text to tile R@1 / 5 / 10",
        "tile to text R@1 / 5 / 10",
        "gallery",
        "chance mR",
    ):
        table.add_column(column)
    for name, found in metrics.items():
        recalls = [
            " / ".join(percent(found[way][f"R@{k}"]) for k in (1, 5, 10)) for way in ("text_to_tile", "tile_to_text")
        ]
        gallery = f"{found['gallery']['tiles']:,} tiles, {found['gallery']['texts']:,} texts"
        table.add_row(
            name, percent(found["mR"]), interval(found["ci95"]["mR"]), *recalls, gallery, percent(found["chance_mR"])
        )
    Console(width=None if Console().is_terminal else 160).print(table)
