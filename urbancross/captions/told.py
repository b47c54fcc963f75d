"""Which geo-tags of a tile a captioner is told: all, some, those nearby, another tile's, or none."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

TAG_COLUMNS = ("center_tags", "surrounding_tags")
OTHERS = "other_"  # prefix of the columns that `with_other_tags` adds


@dataclass(frozen=True)
class Telling:
    """How tags are chosen: `caption`'s flags, for use and for experiments."""

    tags: bool = True
    max_tags: int = 12
    min_tags: int = 1
    sparse: Literal["image", "nearby"] = "image"
    tag_drop_rate: float = 0.0
    shuffle_tags: bool = False


@dataclass(frozen=True)
class Told:
    """The tags that an engine is given of one tile; `origin` is tile, nearby, other tile or none."""

    center: tuple[str, ...] = ()
    surrounding: tuple[str, ...] = ()
    origin: str = "none"

    @property
    def tags(self) -> list[str]:
        return [*self.center, *self.surrounding]


def tags_to_tell(row: dict[str, Sequence[str] | None], telling: Telling, seed: int) -> Told:
    """Choose the tags of one tile.

    A tile with fewer than `min_tags` tags of its own is described from the image alone, or with the tags nearby. Of
    what is chosen, each tag is dropped with probability `tag_drop_rate`; the first `max_tags` of the rest are told.

    Args:
        row: the tile's row of `geotags`, with the columns of `with_other_tags` where tags are shuffled.
        seed: of this tile.
    """
    if not telling.tags:
        return Told()
    prefix, origin = (OTHERS, "other tile") if telling.shuffle_tags else ("", "tile")
    center, surrounding = (list(row.get(prefix + column) or ()) for column in TAG_COLUMNS)
    if len(center) + len(surrounding) < telling.min_tags:
        nearby = list(row.get("nearby_tags") or ()) if telling.sparse == "nearby" else []
        own = {*center, *surrounding}
        surrounding += [tag for tag in nearby if tag not in own]
        origin = "nearby"
        if len(center) + len(surrounding) < telling.min_tags:
            return Told()
    rng = random.Random(seed)
    kept_center, kept_surrounding = (
        [tag for tag in tags if rng.random() >= telling.tag_drop_rate] for tags in (center, surrounding)
    )
    kept_center = kept_center[: telling.max_tags]
    kept_surrounding = kept_surrounding[: telling.max_tags - len(kept_center)]
    if not (kept_center or kept_surrounding):
        return Told()
    return Told(tuple(kept_center), tuple(kept_surrounding), origin)


def with_other_tags(geotags: pa.Table, seed: int) -> pa.Table:
    """A shard of `geotags` with the tags of another tile of the shard beside each tile's own: the control.

    Tiles that have tags exchange them round one random circle, so that no tile keeps its own row of tags (unless it is
    the only one), and how often each tag is told stays as it was.
    """
    rows = geotags.select(["tile_id", *TAG_COLUMNS]).to_pylist()
    tagged = [i for i, row in enumerate(rows) if row["center_tags"] or row["surrounding_tags"]]
    first = rows[0]["tile_id"] if rows else ""
    random.Random(f"{seed}/{first}").shuffle(tagged)
    giver = dict(zip(tagged, tagged[1:] + tagged[:1], strict=True))
    for column in TAG_COLUMNS:
        given = [rows[giver[i]][column] if i in giver else rows[i][column] for i in range(len(rows))]
        geotags = geotags.append_column(OTHERS + column, pa.array(given, pa.list_(pa.string())))
    return geotags
