"""A map file to the archive's table of its features, read once for all tiles; workers read the table, not the file."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urbancross import lease, storage
from urbancross.config import GeotagConfig
from urbancross.distributed.tables import claim, refuse_other_maker
from urbancross.errors import ConfigError
from urbancross.maps import osm, table, vector
from urbancross.maps.table import Batch
from urbancross.maps.visible import RULES
from urbancross.progress import say
from urbancross.storage import Place

OSM_LICENCE = "ODbL 1.0, (c) OpenStreetMap contributors"
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class MapFile:
    """A map as the user gave it: where it lies, how it is read, and under which licence its features are used."""

    path: Path
    read: Callable[[Path], Iterable[Batch]]
    licence: str
    digest: str

    @property
    def table(self) -> str:
        return f"map@{self.digest}"


def map_file(config: GeotagConfig) -> MapFile:
    """
    Raises:
        ConfigError: not exactly one map, or it is not there.
    """
    if config.osm is not None and config.features is None:
        path = storage.file(config.osm, "--osm")
        return MapFile(path, osm.read, config.licence or OSM_LICENCE, storage.digest(path))
    if config.features is not None and config.osm is None:
        path = storage.file(config.features, "--features")
        return MapFile(path, vector.read, config.licence or UNKNOWN_LICENCE, storage.digest(path))
    raise ConfigError("give one map: --osm FILE.osm.pbf, or --features FILE.parquet (or .geojson)")


def make_map(archive: Place, file: MapFile, config: GeotagConfig) -> None:
    """Read a map into its table, unless a whole one is there; what a killed run left of one is cleared away.

    Raises:
        ConfigError: the file cannot be read, nothing in it can be seen, or other rules made the table.
        LeaseError: another run makes it.
    """
    place = archive / file.table
    maker: dict[str, Any] = {
        "table": file.table,
        "settings": {"map": file.digest, "rules": RULES},
        "sources": {},
        "notes": {"licence": file.licence, "file": file.path.name},
    }
    refuse_other_maker(place, maker)
    if table.parts(place) is not None:
        return
    with lease.held(place) as held, claim(place, maker, config):
        if table.parts(place) is not None:  # made while this run waited
            return
        storage.sweep(place)
        for name in storage.shards(place):
            storage.remove(place / name)
        say(f"{file.table}: reading {file.path.name}")
        found = table.write(place, _while_held(file.read(file.path), held), maker)
        if not found:
            raise ConfigError(
                f"{file.path}: nothing in it can be seen from above; give a map with buildings, roads or land use, "
                "its tags in columns named like OpenStreetMap's keys or in a column `tags`"
            )
    say(f"{file.table}: {found:,} features that can be seen, {file.licence}")


def _while_held(batches: Iterable[Batch], held: lease.Lease) -> Iterator[Batch]:
    for batch in batches:
        held.check()
        yield batch
