"""Which split each tile belongs to: what must stay together is divided as a whole, by shares and seed.

Rows are those of `schemas.PLAN` as `sources` makes them; `place` is the name of a row's scene, None for an image.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from urbancross import globe, tiles
from urbancross.duplicates import near_duplicates, neighbours_in_place, perceptual_hashes
from urbancross.errors import ConfigError
from urbancross.progress import meter, say

By = Literal["file", "place", "look"]
Row = dict[str, Any]
Read = Callable[[Row], bytes] | None

BUFFER_TILES = 1.0
BUFFER = "skipped:too near to split "
LEFT_OUT = "left out"
ORDER = ("test", "valid", "train")  # of two tiles too near to each other, the one whose split comes last goes


@dataclass(frozen=True)
class Shares:
    """How tiles whose split nobody names are divided.

    Attributes:
        split: of all that names none; None: by the shares below.
        by: what stays together: `file`, a scene or an image; `place`, a block on the ground; `look`, tiles that are
            nearly the same picture.
        block_m: side of a block.
        reach: bits in which the hashes of near-copies may differ, see `duplicates`.
    """

    split: str | None = None
    valid: float = 0.15
    test: float = 0.25
    seed: int = 0
    by: By = "file"
    block_m: float = 5000.0
    reach: int = 4


def assign(rows: list[Row], shares: Shares, known: dict[str, str], read: Read = None) -> None:
    """Give a split to every row that names none; leave out what would lie too near to another split, or look like two.

    What has a split, by the source or by an earlier plan, keeps it, and what belongs to the same group follows it.

    Args:
        known: splits of tiles that were planned before, or `LEFT_OUT`, by id.
        read: the encoded image of a row; needed by `look`.

    Raises:
        ConfigError: with `place`, a tile does not say where it lies, or a split gets none.
    """
    by: By = "file" if shares.split is not None else shares.by
    for row in rows:
        row["split"] = row.get("split") or known.get(row["tile_id"])
        if row["split"] == LEFT_OUT:
            row["split"], row["failure"] = ORDER[-1], f"{BUFFER}another"  # the plan has it already
    free = [row for row in rows if row["split"] is None]
    if not free:
        return
    live = [row for row in rows if row["failure"] is None] if by != "file" else rows
    keys = GROUPS[by](live, shares, read)
    named: dict[str, set[str]] = {}
    for row, key in zip(live, keys, strict=True):
        if row["split"] is not None:
            named.setdefault(key, set()).add(row["split"])
    splits = {key: min(found, key=ORDER.index) for key, found in named.items()}
    splits |= divide((key for key in keys if key not in splits), shares)
    for row, key in zip(live, keys, strict=True):
        if row["split"] is None:
            row["split"] = splits[key]
            if by == "look" and len(named.get(key, ())) > 1:
                row["failure"] = f"{BUFFER}{' and '.join(sorted(named[key]))}"
    for row in free:
        row["split"] = row["split"] or ORDER[-1]  # what cannot be used anyway
    if by == "file":
        return
    if by == "place":
        leave_buffer(live, free)
    counts = Counter("left out" if is_buffer(row) else row["split"] for row in free)
    told = ", ".join(f"{counts[name]:,} {name}" for name in (*reversed(ORDER), "left out"))
    wanted = {"train": 1 - shares.valid - shares.test, "valid": shares.valid, "test": shares.test}
    empty = [name for name, share in wanted.items() if share > 1e-9 and not counts[name]]
    if by == "place" and empty and len(free) == len(rows):
        raise ConfigError(
            f"--split-by place: blocks of {shares.block_m:g} m leave no tile for {' and '.join(empty)} ({told}); give "
            "another --block-m, some tiles wide, or --valid-share 0 or --test-share 0"
        )
    say(f"ingest: {len(set(keys)):,} groups by {by}: {told}")


def divide(groups: Iterable[str], shares: Shares) -> dict[str, str]:
    """Assign whole groups to splits by quota, in an order that only the seed and the names decide.

    With a share above 0 and more than two groups, a split gets at least one group.
    """
    order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{shares.seed}/{group}".encode()).digest())
    if shares.split is not None:
        return dict.fromkeys(order, shares.split)
    quota = {
        name: max(round(share * len(order)), 1 if share > 0 and len(order) > 2 else 0)
        for name, share in (("test", shares.test), ("valid", shares.valid))
    }
    names = ["test"] * quota["test"] + ["valid"] * quota["valid"]
    return dict(zip(order, names + ["train"] * len(order), strict=False))


def by_file(rows: list[Row], shares: Shares, read: Read) -> list[str]:
    """A scene's tiles stay together; an image is its own."""
    return [row.get("place") or row["tile_id"] for row in rows]


def by_place(rows: list[Row], shares: Shares, read: Read) -> list[str]:
    """Tiles in one block on the ground stay together, whichever scene and date they are of."""
    for row in rows:
        if row.get("bounds") is None and row["split"] is None:
            raise ConfigError(
                f"--split-by place: {row['tile_id']} does not say where it lies; give its bounds, or --split-by look"
            )
    return [row["tile_id"] if row.get("bounds") is None else block(row["bounds"], shares.block_m) for row in rows]


def block(bounds: tuple[float, float, float, float], side_m: float) -> str:
    """The block that holds the middle of bounds: rows of equal height, cut into blocks from the antimeridian on."""
    west, south, east, north = bounds
    lon, lat = west + (east - west) % 360 / 2, (south + north) / 2
    _, north_m = globe.metres_per_degree(np.array([0.0]))
    row = int((lat + 90) * north_m[0] // side_m)
    middle = min(max((row + 0.5) * side_m / north_m[0] - 90, -90.0), 90.0)
    east_m, _ = globe.metres_per_degree(np.array([middle]))
    return f"{row}/{int((lon + 180) % 360 * max(east_m[0], 0.0) // side_m)}"


def by_look(rows: list[Row], shares: Shares, read: Read) -> list[str]:
    """Tiles that are nearly the same picture in any turn and flip stay together, and so does what is like one of them.

    Every image is read once, here; what cannot be read or is too plain to tell is a group of its own.
    """
    seen, hashes = [], []
    with meter("images to group by look", len(rows)) as told:
        for number, row in enumerate(rows):
            told.add(1)
            try:
                hashes.append(perceptual_hashes(tiles.decode(read(row))))  # type: ignore[misc]
                seen.append(number)
            except Exception:  # whatever a library makes of a bad file: `tiles` says what is wrong with it
                continue
    names = [row["tile_id"] for row in rows]
    if seen:
        found = np.stack(hashes)
        pairs = near_duplicates(found[:, 0], found, shares.reach)
        graph = coo_array((np.ones(len(pairs), bool), pairs.T), (len(seen), len(seen)))
        first: dict[int, str] = {}
        of = connected_components(graph, directed=False)[1].tolist()
        for number, group in zip(seen, of, strict=True):
            first[group] = min(first.get(group, names[number]), names[number])
        for number, group in zip(seen, of, strict=True):
            names[number] = first[group]
    return names


def leave_buffer(rows: list[Row], free: list[Row]) -> None:
    """Leave out tiles of `free` that lie within a tile's width of another split's: of two, the one that comes last."""
    placed = [row for row in rows if row.get("bounds") is not None]
    loose = {id(row) for row in free}
    for rank, name in enumerate(ORDER):
        mine = [row for row in placed if row["split"] == name and id(row) in loose]
        others = [
            row
            for row in placed
            if row["split"] != name and not is_buffer(row) and (row["split"] in ORDER[:rank] or id(row) not in loose)
        ]
        ours, theirs = ([row["bounds"] for row in side] for side in (mine, others))
        near = neighbours_in_place(ours, theirs, BUFFER_TILES)
        back = neighbours_in_place(theirs, ours, BUFFER_TILES)[:, ::-1]  # within a width of theirs, if that is larger
        for number, other in (*near.tolist(), *back.tolist()):
            mine[number]["failure"] = f"{BUFFER}{others[other]['split']}"


GROUPS: dict[By, Callable[[list[Row], Shares, Read], list[str]]] = {"file": by_file, "place": by_place, "look": by_look}


def is_buffer(row: Row) -> bool:
    return bool(row["failure"]) and row["failure"].startswith(BUFFER)
