"""`search`: a query to the best tiles, as a table, pictures where the terminal can, or JSON."""

import json
from dataclasses import asdict

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table

from urbancross import storage
from urbancross.archive import Answer, Archive
from urbancross.config import SearchConfig
from urbancross.errors import ConfigError
from urbancross.evidence import Hit
from urbancross.tiles import decode, parse_bbox

PICTURE_CELLS = 24  # characters that a picture is wide; half as many lines high


def run(config: SearchConfig) -> None:
    text = (config.text or "").strip() or None
    if not text and not (config.image or config.plus or config.like):
        raise ConfigError(
            'say what to look for: urbancross search --archive A "a harbour with many boats", or --image FILE'
        )
    bbox = parse_bbox(config.bbox) if config.bbox else None
    area = storage.read_json(storage.file(config.area, "--area"), "--area") if config.area else None
    archive = Archive(
        config.archive,
        embeddings=config.embeddings,
        checkpoint=config.checkpoint,
        device=config.device,
        indexed=not config.exact,
    )
    answer = archive.search(
        text,
        image=config.image,
        plus=config.plus or (),
        minus=config.minus or (),
        like=config.like or (),
        unlike=config.unlike or (),
        bbox=bbox,
        area=area,
        since=config.since,
        until=config.until,
        domain=config.domain,
        split=config.split,
        tags=config.tag or (),
        segment_weight=config.segment_weight,
        top=config.top,
    )
    if config.json_:
        told = {
            "query": {"text": config.text, "image": config.image},
            "embeddings": archive.table,
            "compared": answer.compared,
            "by": answer.by,
            "doubt": None if answer.doubt is None else asdict(answer.doubt),
            "hits": [asdict(hit) for hit in answer.hits],
        }
        print(json.dumps(told, indent=2))
        return
    wanted = [text, config.image, *(config.plus or ()), *(config.like or ())]
    unwanted = [*(config.minus or ()), *(config.unlike or ())]
    show(answer, " and ".join(filter(None, wanted)) + "".join(f", not {name}" for name in unwanted))
    console = Console()
    seen = console.color_system == "truecolor" if config.pictures is None else config.pictures
    if seen and answer.hits:
        console.print(gallery(archive, answer.hits, console.width))


def show(answer: Answer, query: str) -> None:
    """Print hits as a table, and a line where they are doubtful."""
    if not answer.hits:
        print(f"no tile to compare with “{query}”: the filters leave none")
        return
    title = escape(f"“{query}”")  # rich would take [brackets] for its own markup
    table = Table("#", "score", "tile", title=title, title_justify="left")
    located = any(hit.where for hit in answer.hits)
    for column in (["where, pixels"] if located else []) + ["what is known of it"]:
        table.add_column(column)
    for hit in answer.hits:
        place = "x {}-{}, y {}-{}".format(*(hit.where["box"][i] for i in (0, 2, 1, 3))) if hit.where else ""
        cells = [str(hit.rank), f"{hit.score:.3f}", escape(hit.tile_id), *([place] if located else [])]
        table.add_row(*cells, escape(known(hit)))
    Console(width=None if Console().is_terminal else 140).print(table)
    if answer.doubt is not None and answer.doubt.nothing_matches:
        print(
            "nothing here seems to match: the best tiles are less near than those of nearly all texts that do match "
            f"(of which {100 * answer.doubt.false_alarm:.1f} % are wrongly told so)"
        )


def known(hit: Hit) -> str:
    """The caption phrase that fits best, or what else is known, and where and when it is."""
    said = hit.phrase or (hit.captions[0] if hit.captions else "; ".join(hit.tags))
    place = "" if hit.bounds is None else "{:.4f}, {:.4f}".format(*middle(hit.bounds))
    return " · ".join(filter(None, (said, place, hit.datetime)))


def middle(bounds: list[float]) -> tuple[float, float]:
    """Longitude and latitude of the middle of bounds."""
    west, south, east, north = bounds
    lon = (west + (east if west <= east else east + 360)) / 2
    return (lon + 180) % 360 - 180, (south + north) / 2


def gallery(archive: Archive, hits: list[Hit], width: int) -> RenderableType:
    """Tiles in rows, drawn in half blocks, each under its rank."""
    grid = Table.grid(padding=(0, 2))
    columns = max(width // (PICTURE_CELLS + 2), 1)
    cells = []
    for hit in hits:
        image = archive.evidence.picture(hit.shard, hit.row)
        cells.append(Group(f"{hit.rank}  {hit.score:.3f}", blocks(decode(image)) if image else ""))
    for start in range(0, len(cells), columns):
        grid.add_row(*cells[start : start + columns])
    return grid


def blocks(image: np.ndarray) -> Segments:
    """`[H, W, 3]` uint8 as characters whose upper and lower half are a pixel each."""
    small = np.asarray(Image.fromarray(image).resize((PICTURE_CELLS, PICTURE_CELLS), Image.Resampling.BOX))
    drawn = []
    for y in range(0, PICTURE_CELLS, 2):
        for upper, lower in zip(small[y].tolist(), small[y + 1].tolist(), strict=True):
            drawn.append(Segment("▀", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))))
        drawn.append(Segment.line())
    return Segments(drawn)
