"""An archive of two shards to index, and codes for as few tiles as it has."""

from pathlib import Path

import pytest
import searchable
from searchable import add_shard

from urbancross.index import vectors
from urbancross.models import checkpoints


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return searchable.model_in(tmp_path_factory.mktemp("model"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are used for hardly more tiles than are asked for."""
    monkeypatch.setattr(vectors, "FEW", 12)
    monkeypatch.setattr(checkpoints, "load", lambda model, device: searchable.encoder(model.name))  # once for all


@pytest.fixture
def archive(tmp_path: Path, model: str) -> Path:
    """Two shards of sixty tiles, one of which failed."""
    add_shard(tmp_path / "a", model, 0, failed=[7])
    add_shard(tmp_path / "a", model, 1)
    return tmp_path / "a"
