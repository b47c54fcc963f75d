"""One archive for all tests of `serve`, and an application over it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import served
from starlette.testclient import TestClient

from urbancross.archive import Archive
from urbancross.serve.library import Library


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return served.models_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> Path:
    return served.made(tmp_path_factory.mktemp("served") / "finland", models)


@pytest.fixture(scope="session")
def library(place: Path) -> Library:
    return served.library_of(place, ["before", "after"])


@pytest.fixture(scope="session")
def client(library: Library) -> TestClient:
    return TestClient(served.application(library), base_url="http://127.0.0.1:8000")


@pytest.fixture(scope="session")
def plain(place: Path) -> Archive:
    """The same archive as Python asks it."""
    return Archive(str(place), embeddings="before")


@pytest.fixture(scope="session")
def port(library: Library) -> Iterator[int]:
    """Where it answers over real sockets, with no limit on the rate."""
    with served.listening(served.application(library)) as found:
        yield found
