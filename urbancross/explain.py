"""`explain`: where a tile comes from, and what became of it in every table."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from urbancross import storage
from urbancross.config import ExplainConfig
from urbancross.storage import Place
from urbancross.tables import FIRST, claimed, find_tile, of_tiles, verb_of

SHOWN = 60  # characters of a value


def history(archive: Place, tile_id: str) -> list[dict[str, Any]]:
    """One entry per table that has a row for the tile, in the order in which their shards were published."""
    shard, row = find_tile(archive, tile_id)
    told = []
    for table in of_tiles(archive):
        if not storage.exists(archive / table / shard):
            continue
        place = archive / table / shard
        values = storage.read_shard(place).slice(row, 1).to_pylist()[0]
        failure = values.pop("failure", None)
        maker = claimed(archive / table) or storage.made_by(storage.read_schema(place))
        told.append(
            {
                "table": table,
                "shard": shard,
                "row": row,
                "state": "planned" if table == "plan" else "done" if failure is None else failure,
                "published": datetime.fromtimestamp(storage.modified_s(place), UTC).isoformat(timespec="seconds"),
                "made_by": {"verb": verb_of(table) or "another program", **maker.get("settings", {})},
                "row_holds": {key: _short(value) for key, value in values.items() if key != "tile_id"},
            }
        )
    return sorted(told, key=lambda entry: (entry["published"], entry["table"] not in FIRST, entry["table"] != "plan"))


def _short(value: Any) -> Any:
    """What a person can read of a value: sizes of bytes and long lists, the beginning of long texts."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and len(str(value)) > SHOWN:
        first = value[0]
        shown = f"({', '.join(first)})" if isinstance(first, dict) else str(_short(first))[:SHOWN]
        return f"{len(value)} × {shown if isinstance(first, dict | str) else type(first).__name__}"
    return value if value is None or isinstance(value, int | float | list) else str(value)[:SHOWN]


def run(config: ExplainConfig) -> None:
    archive = storage.archive(config.archive)
    told = history(archive, config.tile_id)
    if config.json_:
        print(json.dumps({"tile_id": config.tile_id, "history": told}, indent=2))
    else:
        show(told, config.tile_id)


def show(told: Sequence[dict[str, Any]], tile_id: str) -> None:
    """Print a history as a table."""
    title = f"{escape(tile_id)}: row {told[0]['row']:,} of {told[0]['shard']}"
    table = Table("table", "state", "published", "what the row holds", "made by", title=title, title_justify="left")
    for entry in told:
        holds = ", ".join(f"{key} {value}" for key, value in entry["row_holds"].items() if value is not None)
        made_by = " ".join(str(value) if key == "verb" else f"{key}={value}" for key, value in entry["made_by"].items())
        table.add_row(entry["table"], *map(escape, (entry["state"], entry["published"], holds, made_by)))
    Console(width=None if Console().is_terminal else 160).print(table)
