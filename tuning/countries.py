"""Drawn countries that differ in nothing but their look, at one ground sample distance, for `domains.py`.

    python tuning/countries.py --out FOLDER [--scenes 12] [--gsd-m 0.7]
    python tuning/domains.py --archives FOLDER/north FOLDER/north-again FOLDER/between FOLDER/south \\
        --captions template --out FOLDER/domains

`north` and `north-again` look alike and lie elsewhere; `south` has the other demo country's colours, light and haze;
`between` is half-way there. All maps are as good as the north's. Each archive gets tiles, geo-tags, captions from
templates and features; what is there already is not made again.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from urbancross import cli, storage
from urbancross.errors import UrbanCrossError
from urbancross.world import NORTHLAND, SOUTHLAND, Country, write_country
from urbancross.world.shapes import Style

COUNTRIES = {"north": (0.0, 7), "north-again": (0.0, 8), "between": (0.5, 9), "south": (1.0, 10)}  # share, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--scenes", type=int, default=12, help="of each country; each makes 36 tiles of 224 px")
    parser.add_argument("--gsd-m", type=float, default=NORTHLAND.gsd_m)
    told = parser.parse_args()
    home = Path(told.out).absolute()
    for name, (share, seed) in COUNTRIES.items():
        country = replace(NORTHLAND, name=name, lon=NORTHLAND.lon + seed / 10, gsd_m=told.gsd_m, style=mixed(share))
        archive_of(country, home / name, home / f"{name}-{told.scenes}-{told.gsd_m:g}", told.scenes, seed)


def mixed(share: float) -> Style:
    """A style on the straight way from the north's to the south's; how homes are built changes half-way."""
    north, south = NORTHLAND.style, SOUTHLAND.style
    return Style(**{field.name: between(getattr(north, field.name), getattr(south, field.name), share)
                    for field in fields(Style)})  # fmt: skip


def between(one: Any, other: Any, share: float) -> Any:
    if isinstance(one, dict):
        return {key: between(one[key], other[key], share) for key in one}
    if isinstance(one, tuple):
        return tuple(between(*pair, share) for pair in zip(one, other, strict=True))
    if isinstance(one, bool):
        return other if share > 0.5 else one
    value = (1 - share) * one + share * other
    return round(value) if isinstance(one, int) else value


def archive_of(country: Country, archive: Path, world: Path, scenes: int, seed: int) -> None:
    """Tiles, geo-tags, captions and features of a country."""
    if not world.is_dir():
        with storage.publish_folder(world) as folder:
            write_country(country, folder, scenes=scenes, scene_px=1344, seed=seed)
    for verb, settings in {
        "ingest": {"source": str(world / "scenes"), "domain": country.name, "valid_share": 0.4, "test_share": 0.0},
        "geotag": {"osm": str(world / "map.osm")},
        "caption": {"engine": "template"},
        "pretrain": {"out": f"{archive}-heads", "head_epochs": 1, "workers": 1},  # makes the features
    }.items():
        cli.call(verb, cli.VERBS[verb].kind(archive=str(archive), **settings))


if __name__ == "__main__":
    try:
        main()
    except UrbanCrossError as error:
        raise SystemExit(str(error)) from None
