"""The application: its addresses, and what each answers. Nothing of a request reaches a path, nothing is written."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from urbancross import storage
from urbancross.errors import StorageError, TileError
from urbancross.evidence import Hit
from urbancross.segments import shapes
from urbancross.serve import asked as asking
from urbancross.serve import downloads, pictures, summary
from urbancross.serve.guard import UNFORESEEN, Guard
from urbancross.serve.library import Library, Served
from urbancross.serve.limits import QUERY_BYTES, Limited, Rates, Turns
from urbancross.serve.newest import Newest
from urbancross.serve.refused import Refused

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
PICTURES_BYTES = 64 << 20  # of tiles as JPEGs that are kept
OUTLINES = 2000  # tiles whose outlines are kept
UPLOADS = 2  # that are decoded at the same time, each of which may take some 200 MB
STRAY_PX = 0.5  # how far an outline may lie from its mask
NARROWEST, WIDEST = 64, 1024  # pixels of a tile's picture
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
A_QUERY = {"/api/search", "/api/download"}
AN_UPLOAD = "/api/pictures"


class File(NamedTuple):
    """A file of the page, or a tile's picture."""

    data: bytes
    kind: str
    tag: str

    @classmethod
    def of(cls, data: bytes, kind: str) -> "File":
        return cls(data, kind, f'"{storage.digest_bytes(data)[:16]}"')

    def answer(self, request: Request, keep: str) -> Response:
        """Or 304, where the browser has it."""
        headers = {"ETag": self.tag, "Cache-Control": keep}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.data, media_type=self.kind, headers=headers)


class Answers:
    """What an archive answers, a method for each address; `archive` and `places` want one thread at a time."""

    def __init__(self, library: Library, upload_bytes: int) -> None:
        self.library, self.upload_bytes = library, upload_bytes
        self.files = files(STATIC)
        self._jpegs: Newest[File] = Newest(PICTURES_BYTES)
        self._outlines: Newest[dict[str, Any]] = Newest(OUTLINES)

    @cached_property
    def _facts(self) -> pa.Table:
        return summary.facts_of_all(self.library.first)

    @cached_property
    def _summary(self) -> dict[str, Any]:
        return summary.summary(self._facts)

    @cached_property
    def _cells(self) -> list[list[float]]:
        return summary.cells(self._facts)

    def archive(self) -> dict[str, Any]:
        limits = {
            "query_chars": asking.QUERY_CHARS,
            "upload_bytes": self.upload_bytes,
            "top": asking.TOP,
            "terms": asking.TERMS,
        }
        models = [model_of(archive) for archive in self.library.archives.values()]
        return {
            "name": self.library.name,
            "tiles": len(self.library.first),
            "models": models,
            **self._summary,
            "limits": limits,
        }

    def places(self) -> dict[str, Any]:
        return {"cells": self._cells}

    def search(self, body: bytes) -> dict[str, Any]:
        began = time.perf_counter()
        archive, found = self.library.search(asking.read(body))
        corners = archive.kept.corners(found.hits)
        return {
            "hits": [told(hit) | {"corners": ends} for hit, ends in zip(found.hits, corners, strict=True)],
            "compared": found.compared,
            "by": found.by,
            "doubt": None if found.doubt is None else asdict(found.doubt),
            "ms": round(1000 * (time.perf_counter() - began), 1),
        }

    def download(self, body: bytes, kind: str) -> bytes:
        write, _ = downloads.KINDS[kind]
        archive, found = self.library.search(asking.read(body))
        return write(found.hits, [archive.kept.footprint(hit.shard, hit.row) for hit in found.hits])

    def remember(self, body: bytes) -> dict[str, str]:
        return {"picture": self.library.remember(pictures.uploaded(body))}

    def picture(self, number: str, px: int) -> File:
        archive = self.library.first
        shard, row = address(archive, number)
        if (kept := self._jpegs.get((shard, row, px))) is not None:
            return kept
        try:
            found = File.of(pictures.jpeg(self._image(archive, shard, row), px), "image/jpeg")
        except TileError:
            raise Refused(404, "this tile's picture cannot be read") from None
        self._jpegs.put((shard, row, px), found, len(found.data))
        return found

    def outlines(self, number: str, model: str | None) -> dict[str, Any]:
        archive = self.library.of(model)
        shard, row = address(archive, number)
        if (kept := self._outlines.get((archive.key, shard, row))) is not None:
            return kept
        segments = archive.kept.cut(shard, row)
        try:
            if segments:
                height, width = segments[0]["size"]
                size = [width, height]
            else:
                size = pictures.size_of(self._image(archive, shard, row))
            found = {"size": size, "segments": [drawn(segment) for segment in segments]}
        except TileError:
            raise Refused(404, "this tile's segments cannot be drawn") from None
        self._outlines.put((archive.key, shard, row), found)
        return found

    def _image(self, archive: Served, shard: str, row: int) -> bytes:
        data = archive.kept.picture(shard, row)
        if data is None:
            raise Refused(404, "this tile has no picture")
        return data


def address(archive: Served, number: str) -> tuple[str, int]:
    """Shard and row of a tile.

    Raises:
        Refused: there is no such tile.
    """
    found = archive.kept.address(int(number)) if number.isascii() and number.isdigit() and len(number) < 16 else None
    if found is None:
        raise Refused(404, f"there is no such tile: they are counted from 0 to {len(archive) - 1}")
    return found


def model_of(archive: Served) -> dict[str, Any]:
    index = archive.index
    calibrated = index.manifest["nothing_matches"] if index else None
    return {
        "key": archive.key,
        "table": archive.table,
        "checkpoint": archive.model.variant,
        "indexed": index.kind if index else None,
        "segments": archive.segments is not None,
        "false_alarm": calibrated["false_alarm"] if calibrated else None,
    }


def told(hit: Hit) -> dict[str, Any]:
    """A hit as it is sent."""
    return {name: value for name, value in asdict(hit).items() if name not in ("shard", "row")}


def drawn(segment: Mapping[str, Any]) -> dict[str, Any]:
    shape = shapes.outline(dict(segment), STRAY_PX)
    rings = [ring for part in getattr(shape, "geoms", [shape]) for ring in (part.exterior, *part.interiors)]
    outline = [[[round(x, 1), round(y, 1)] for x, y in ring.coords] for ring in rings]
    return {"rank": segment["rank"], "score": segment["score"], "box": segment["box"], "outline": outline}


def files(folder: Path) -> dict[str, File]:
    """Files of a folder by their names in it, read now: a name that is asked for later never reaches the disk."""
    return {
        path.relative_to(folder).as_posix(): File.of(
            path.read_bytes(), TYPES.get(path.suffix, "text/plain; charset=utf-8")
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def create(
    library: Library,
    *,
    upload_bytes: int,
    requests_per_second: float,
    burst: float,
    at_once: int = 4,
    hostnames: tuple[str, ...] = (),
) -> ASGIApp:
    """The whole application, guards and limits around it."""
    api = routes(Answers(library, upload_bytes), Queues(Turns(at_once), Turns(UPLOADS), Turns(at_once), Turns(1)))
    bodies = {**dict.fromkeys(A_QUERY, QUERY_BYTES), AN_UPLOAD: upload_bytes}
    return Guard(Limited(api, bodies, Rates(requests_per_second, burst)), hostnames)


class Queues(NamedTuple):
    """Who waits for whom: a tile's picture for no search, and nobody for the facts of the archive."""

    searches: Turns
    uploads: Turns
    tiles: Turns
    facts: Turns


def routes(answers: Answers, turns: Queues) -> FastAPI:
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @api.get("/")
    async def page(request: Request) -> Response:
        return await static(request, "index.html")

    @api.get("/static/{name:path}")
    async def static(request: Request, name: str) -> Response:
        if name not in answers.files:
            raise Refused(404, "there is no such page; begin at /")
        return answers.files[name].answer(request, "no-cache")

    @api.get("/api/archive")
    async def archive(request: Request) -> Response:
        return JSONResponse(await turns.facts.do(request, answers.archive))

    @api.get("/api/places")
    async def places(request: Request) -> Response:
        return JSONResponse(await turns.facts.do(request, answers.places))

    @api.post("/api/search")
    async def search(request: Request) -> Response:
        return await turns.searches.do(request, lambda body: JSONResponse(answers.search(body)), await request.body())

    @api.post("/api/pictures")
    async def remember(request: Request) -> Response:
        return JSONResponse(await turns.uploads.do(request, answers.remember, await request.body()))

    @api.post("/api/download")
    async def download(request: Request, format: str = "geojson") -> Response:
        if format not in downloads.KINDS:
            raise Refused(422, f"format: want one of {', '.join(downloads.KINDS)}")
        data = await turns.searches.do(request, answers.download, await request.body(), format)
        named = {"Content-Disposition": f'attachment; filename="hits.{format}"'}
        return Response(data, media_type=downloads.KINDS[format][1], headers=named)

    @api.get("/api/tiles/{number}/picture")
    async def picture(request: Request, number: str, px: int = 256) -> Response:
        if not NARROWEST <= px <= WIDEST:
            raise Refused(422, f"px: want {NARROWEST} to {WIDEST}")
        found = await turns.tiles.do(request, answers.picture, number, px)
        return found.answer(request, "private, max-age=3600")

    @api.get("/api/tiles/{number}/segments")
    async def segments(request: Request, number: str, model: str | None = None) -> Response:
        return JSONResponse(await turns.tiles.do(request, answers.outlines, number, model))

    @api.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return error.response

    @api.exception_handler(StorageError)
    async def unreadable(_: Request, error: StorageError) -> Response:
        log.warning("%s", error)
        return Refused(503, "the archive cannot be read just now; try again").response

    @api.exception_handler(RequestValidationError)
    async def unfitting(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Refused(422, f"{str(first['loc'][-1])[:80]}: {first['msg']}").response

    @api.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        lines = {404: "there is no such page; begin at /", 405: "this address takes another method"}
        return Refused(error.status_code, lines.get(error.status_code, str(error.detail)), error.headers).response

    @api.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return UNFORESEEN.response  # the guard logs it

    return api
