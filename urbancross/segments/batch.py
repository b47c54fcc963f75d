"""A batch of tiles to rows of `schemas.SEGMENTS`, with a given segmenter."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from urbancross import schemas
from urbancross.errors import EngineError, TileSkipped
from urbancross.segments.choice import choose
from urbancross.segments.masks import Mask, MaskMaker
from urbancross.tiles import decode

log = logging.getLogger(__name__)

THREADS = 2  # that decode tiles and choose among masks while the model is at work
ALL_FAIL = 3  # so many tiles in a row, tried one by one, mean that it is not the tiles


def segment_tiles(
    maker: MaskMaker, tiles: pa.Table, went_on: Callable[[], None] = lambda: None, **choice: Any
) -> pa.Table:
    """Segments of every tile, in order; a tile without any has an empty list and a reason.

    Args:
        maker: proposes masks.
        tiles: with columns `tile_id`, `image` and `failure`.
        went_on: called after each tile.
        choice: arguments of `choose`.

    Raises:
        EngineError: the segmenter fails at whatever it is given.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(lambda row: schemas.each_tile([row], _pixels)[0], tiles.to_pylist()))
        todo = [row for row in rows if row["failure"] is None]
        chosen = []
        for found in _masks(maker, [row.pop("pixels") for row in todo]):
            went_on()
            chosen.append(found if isinstance(found, Exception) else pool.submit(choose, found, **choice))
        for row, outcome in zip(todo, chosen, strict=True):
            if isinstance(outcome, Exception):
                row["failure"] = f"failed:{type(outcome).__name__}: {outcome}"
            elif not (segments := outcome.result()):
                row["failure"] = "skipped:no mask within the bounds"
            else:
                row["segments"] = segments
    for row in rows:
        row.setdefault("segments", [])
    return pa.Table.from_pylist(rows, schema=schemas.SEGMENTS)


def _pixels(row: dict[str, Any]) -> dict[str, Any]:
    tile = decode(row["image"])
    if (tile == tile[0, 0]).all():
        raise TileSkipped("one colour")
    return {"pixels": tile}


def _masks(maker: MaskMaker, tiles: Sequence[np.ndarray]) -> Iterator[list[Mask] | Exception]:
    """The masks of each tile; where the segmenter raises, the rest goes one by one, so that it costs one tile."""
    done, failed = 0, 0
    try:
        for found in maker.masks(iter(tiles)):
            yield found
            done += 1
        return
    except Exception as error:  # whatever a model's library raises
        log.warning("the segmenter failed at one of %d tiles (%s); trying them one by one", len(tiles) - done, error)
    for tile in tiles[done:]:
        try:
            (found,) = maker.masks([tile])
            failed = 0
            yield found
        except Exception as error:
            log.exception("a tile that cannot be segmented")
            failed += 1
            if failed == ALL_FAIL:
                raise EngineError(f"the segmenter fails at every tile: {error}") from error
            yield error
