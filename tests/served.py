"""A small archive with pixels, segments and embeddings by two models; and what serves it, here or in a process."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import uvicorn
from conftest import KINDS as LOOKS
from conftest import draw
from learning import small_open_clip
from PIL import Image
from rasterio import Affine
from rasterio.transform import from_origin
from rasterio.warp import transform as warp_points
from safetensors.torch import load_file, save_file
from searchable import caption, index, maker, near, publish

from urbancross import cli, globe, schemas
from urbancross.models import checkpoints
from urbancross.segments.masks import GridMasks
from urbancross.serve.app import create
from urbancross.serve.library import Library, opened
from urbancross.serve.running import Impatient
from urbancross.storage import Place

COUNT, SHARDS, WIDTH = 60, 2, 24
FAILED, NOWHERE, ACROSS, WIDE = 7, 8, 9, 10  # tiles: without a picture, without a place, at the antimeridian, of 300 px
WITHOUT_VECTOR = 11
TURNED = 12  # by 30 degrees; its upper left quarter is red
ON_GROUND = from_origin(451_000, 6_652_700, 10, 10) @ Affine.rotation(30)  # of TURNED
TURNED_IN = "EPSG:32634"
STRADDLING = 59  # of those that `lie_across`
UPLOAD_BYTES = 200_000
QUERY = b'{"text": "a lake", "top": 3}'


def models_in(folder: Path) -> tuple[str, str]:
    """What two tables of embeddings name as their checkpoints: small models with random weights."""
    for name in ("before", "after"):
        if not (folder / name).is_dir():
            small_open_clip(folder / name)
            weights = folder / name / "open_clip_model.safetensors"
            state = load_file(weights)
            state["text_projection"] += 0.1 * (name == "after")
            save_file(state, weights)
    return f"local-dir:{folder / 'before'}", f"local-dir:{folder / 'after'}"


def pixels(number: int) -> np.ndarray:
    found = draw(sorted(LOOKS)[number % len(LOOKS)], number, 300 if number == WIDE else 64)
    if number == TURNED:
        found[:32, :32] = (255, 0, 0)
    return found


def encoded(image: np.ndarray, kind: str = "JPEG") -> bytes:
    out = BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


def ends_of_turned() -> np.ndarray:
    """`[4, 2]` degrees of `TURNED`: upper left, upper right, lower right, lower left; about its first."""
    xs, ys = ON_GROUND @ (np.array([0, 64, 64, 0]), np.array([0, 0, 64, 64]))
    lon, lat = (np.array(axis) for axis in warp_points(TURNED_IN, "EPSG:4326", xs, ys))
    return np.column_stack([lon - 360 * np.round((lon - lon[0]) / 360), lat])


def bounds_of_turned() -> list[float]:
    west, south, east, north = *ends_of_turned().min(axis=0).tolist(), *ends_of_turned().max(axis=0).tolist()
    return [into_range(west), south, into_range(east), north]


def into_range(lon: float) -> float:
    return (lon + 180) % 360 - 180


def bounds_of(number: int) -> list[float] | None:
    if number == TURNED:
        return bounds_of_turned()
    if number == NOWHERE:
        return None
    if number == ACROSS:
        return [179.99, 60.0, -179.99, 60.02]
    return [20 + number / 100, 60.0, 20 + (number + 0.9) / 100, 60.01]


def lie_across(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of archives that are made from now on lie side by side from 179.4 to -179.4 degrees, two of them on both
    sides: `STRADDLING`, and `TURNED`."""
    monkeypatch.setattr(sys.modules[__name__], "TURNED_IN", "EPSG:32701")
    monkeypatch.setattr(
        sys.modules[__name__], "ON_GROUND", from_origin(180_300, 8_118_000, 10, 10) @ Affine.rotation(30)
    )
    monkeypatch.setattr(sys.modules[__name__], "bounds_of", bounds_across)


def bounds_across(number: int) -> list[float] | None:
    if number == TURNED:
        return bounds_of_turned()
    if number == NOWHERE:
        return None
    west, east = (into_range(179.404 + (number + share) / 100) for share in (0, 0.9))
    return [west, -17.0, east, -16.99]


def made(place: Place, models: tuple[str, str], indexed: bool = True) -> Place:
    """Two shards of 60 tiles; `before` has an index and embeddings of segments, `after` has neither."""
    for shard in range(SHARDS):
        add_shard(place, models, shard)
    if indexed:
        index(place, embeddings="before", queries=40, min_recall=0)
    return place


def add_shard(place: Place, models: tuple[str, str], shard: int) -> None:
    numbers = range(shard * COUNT, (shard + 1) * COUNT)
    ids = {k: f"t{k}" for k in numbers}
    tiles = [
        {"tile_id": ids[k], "failure": "failed:truncated", "domain": "d"} if k == FAILED else tile(k) for k in numbers
    ]
    publish(place, "tiles", shard, tiles, schemas.TILES)
    told = [{"tile_id": ids[k], "captions": [caption(k)]} for k in numbers]
    publish(place, "captions@given", shard, told, schemas.CAPTIONS)
    tags = [{"tile_id": ids[k], "center_tags": [f"natural=n{k % 3}"], "surrounding_tags": None} for k in numbers]
    publish(place, "geotags", shard, tags, schemas.GEOTAGS)
    cut = list(GridMasks().masks(pixels(k) for k in numbers))
    rows = [
        {
            "tile_id": ids[k],
            "segments": [
                {"rle": m.rle, "size": m.size, "box": m.box, "area": m.area, "score": 1 - r / 10, "rank": r}
                for r, m in enumerate(masks)
            ],
        }
        for k, masks in zip(numbers, cut, strict=True)
    ]
    publish(place, "segments@grid", shard, rows, schemas.SEGMENTS)
    for name, model in zip(("before", "after"), models, strict=True):
        vectors = near(np.random.default_rng(shard), encoder(model).encode_texts([caption(k) for k in numbers]))
        found = [
            {"tile_id": ids[k], "failure": "failed:truncated"}
            if k in (FAILED, WITHOUT_VECTOR)
            else {"tile_id": ids[k], "vector": vector}
            for k, vector in zip(numbers, vectors, strict=True)
        ]
        publish(place, f"embeddings@{name}", shard, found, schemas.embeddings(WIDTH), maker(model))
        if name == "before":
            rng = np.random.default_rng(100 + shard)
            parts = [
                {"tile_id": ids[k], "vectors": list(near(rng, np.repeat(vector[None], 4, axis=0), 2.0))}
                for k, vector in zip(numbers, vectors, strict=True)
            ]
            told_by = maker(model, **{"segments@grid": "x"})
            publish(place, "segment_embeddings@before", shard, parts, schemas.segment_embeddings(WIDTH), told_by)


_encoders: dict[str, Any] = {}


def encoder(model: str) -> Any:
    if model not in _encoders:
        _encoders[model] = checkpoints.load(checkpoints.resolve(model))
    return _encoders[model]


def tile(number: int) -> dict[str, Any]:
    if number == FAILED:
        return {"tile_id": f"t{number}", "failure": "failed:truncated", "domain": "d"}
    bounds = bounds_of(number)
    return {
        "tile_id": f"t{number}",
        "domain": ("d", "late")[number >= COUNT],
        "split": ("train", "valid")[number % 2],
        "image": encoded(pixels(number), "PNG" if number == WIDE else "JPEG"),
        "bounds": bounds,
        **footprint_of(number),
        "gsd_m": float("nan") if number == 0 else 2.0,
        "datetime": f"2024-0{1 + number % 9}-17",
    }


def footprint_of(number: int) -> dict[str, Any]:
    if number == TURNED:
        shape = globe.wrapped(shapely.Polygon(ends_of_turned()))
        return {"geometry": shape.wkb, "crs": TURNED_IN, "transform": list(ON_GROUND)[:6]}
    bounds = bounds_of(number)
    return {"geometry": None if bounds is None else globe.box(bounds).wkb}


def map_of(place: Path, out: Path, *flags: str) -> str:
    """What `report --map` writes."""
    cli.main(None, ["report", "--map", "--archive", str(place), "--out", str(out), *flags])
    return out.read_text()


def library_of(place: Place, variants: list[str] | None = None) -> Library:
    return opened(str(place), variants)[0]


def application(library: Library, **settings: Any) -> Any:
    return create(library, **{"upload_bytes": UPLOAD_BYTES, "requests_per_second": 0, "burst": 1} | settings)


@contextlib.contextmanager
def listening(app: Any) -> Iterator[int]:
    """The port at which an application answers, on a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        settings = uvicorn.Config(
            app, http=Impatient, ws="none", lifespan="off", loop="asyncio", log_level="critical",
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [found]}, daemon=True)
        thread.start()
        try:
            yield found.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=20)


@contextlib.contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`urbancross serve` as its users start it, and the port that it says."""
    command = [sys.executable, "-m", "urbancross.cli", "serve", "--port", "0", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as server:
        assert server.stdout is not None
        said = re.search(r":(\d+)  ", server.stdout.readline())
        try:
            assert said, server.stderr and server.stderr.read()
            yield server, int(said[1])
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGKILL)


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[HTTPResponse, bytes]:
    """One request on a connection of its own."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()


def raw(port: int, request: bytes, wait_s: float = 30) -> bytes:
    """All that the server answers to bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        connection.sendall(request)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                found += part
        return found


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and time of change."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def is_one_line(told: bytes, place: Path) -> bool:
    """Whether this is an error as the page expects it, and tells nothing of this machine."""
    found = json.loads(told)
    line = found["error"]
    secrets = (str(place), "/tmp", "site-packages", "Traceback", ".py", "urbancross/")
    return list(found) == ["error"] and "\n" not in line and not any(secret in line for secret in secrets)
