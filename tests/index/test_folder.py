"""An index as it lies in an archive, asked: segments, filters, and files that go while it is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import searchable
from searchable import add_segments, add_shard, add_tags, index, name

from urbancross.errors import ConfigError
from urbancross.index import exact, folder, vectors
from urbancross.index.facts import Filters
from urbancross.index.folder import Index, read_manifest
from urbancross.models import checkpoints

SHARDS, COUNT = 3, 150
TABLE, SEGMENTS = "embeddings@m", "segment_embeddings@m"


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "FEW", 12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return searchable.model_in(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """Indexed in two goes, the last shard without segments of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "FEW", 12)
        place = tmp_path_factory.mktemp("archive")
        patch.setattr(checkpoints, "load", lambda model, device: searchable.encoder(model.name))
        for shard in range(SHARDS):
            add_shard(place, model, shard, count=COUNT, failed=[2, 149])
            if shard < SHARDS - 1:
                add_segments(place, model, shard, count=COUNT)
            add_tags(place, shard, count=COUNT)
            if shard != 1:
                index(place, codes="int8")
    assert len(read_manifest(place / "index@m")["parts"]) == 2  # type: ignore[index]
    return place


@pytest.fixture
def built(archive: Path) -> Index:
    found = Index.at(archive, TABLE)
    assert found is not None
    return found


def queries(count: int = 20) -> np.ndarray:
    found = np.random.default_rng(5).normal(size=(count, searchable.WIDTH)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


FILTERS = [None, Filters(tags=("natural=n1",)), Filters(bbox=(20.0, 59.0, 25.0, 61.0), split="valid")]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("filters", FILTERS)
def test_the_index_ranks_as_exact_search_does_with_the_best_segment_taking_its_share(
    archive: Path, built: Index, weight: float, filters: Filters | None
):
    assert built.segments is not None
    assert (built.tiles.codes is None, built.segments.codes is None) == (False, False)
    assert built.manifest["rerank"] < len(built) / 2  # or codes would choose nothing
    hits = 0
    for query in queries():
        wanted = exact.best(archive, TABLE, query, 10, filters, SEGMENTS, weight)
        found = built.best(query, 10, filters, weight)
        assert found.compared == wanted.compared
        assert [tile.score for tile in found.found] == sorted((tile.score for tile in found.found), reverse=True)
        told = {(tile.shard, tile.row): tile.score for tile in wanted.found}
        both = [tile for tile in found.found if (tile.shard, tile.row) in told]
        hits += len(both)
        for tile in both:
            assert tile.score == pytest.approx(told[tile.shard, tile.row], abs=2e-3)
    assert hits / 200 >= 0.97


def test_every_score_is_that_of_the_tile_and_of_the_best_of_its_segments(archive: Path, built: Index):
    query = queries()[0]
    ids, scores = built.nearest(query, 10, None, 0.4)
    assert (np.diff(ids) > 0).all()
    assert len(ids) < len(built)
    everything = exact.best(archive, TABLE, query, 10_000, None, SEGMENTS, 0.4).found
    told = {(tile.shard, tile.row): tile.score for tile in everything}
    for number, score in zip(ids, scores, strict=True):
        assert score == pytest.approx(told[built._address(int(number))], abs=2e-3)


def test_a_tile_is_found_at_its_row_in_the_archive_past_those_that_failed(built: Index, model: str):
    assert len(built) == SHARDS * (COUNT - 2)
    for shard, row in ((0, 0), (0, 148), (1, 1), (1, 3), (2, 100)):
        best = built.best(searchable.vectors_of(model, shard, COUNT)[row], 1).found[0]
        assert (best.shard, best.row) == (name(shard), row)
    rows = {(tile.shard, tile.row) for tile in built.best(queries()[0], 1000).found}
    assert rows == {(name(shard), row) for shard in range(SHARDS) for row in range(COUNT) if row not in (2, 149)}


def test_filters_that_leave_none_find_none(built: Index):
    assert built.best(queries()[0], 10, Filters(domain="nowhere"), 0.5) == ([], 0)


def test_an_index_that_is_rebuilt_while_it_is_opened_is_read_anew(
    archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    model = searchable.model_in(tmp_path)
    add_shard(tmp_path / "a", model, 0)
    index(tmp_path / "a", codes="pq")
    old = read_manifest(tmp_path / "a" / "index@m")
    index(tmp_path / "a", codes="pq", rebuild=True)
    told: list[Any] = [old]  # as it was read just before

    def read(place: Any) -> Any:
        return told.pop() if told else read_manifest(place)

    monkeypatch.setattr(folder, "read_manifest", read)
    found = Index.at(tmp_path / "a", TABLE)
    assert found is not None
    assert found.manifest != old
    assert len(found) == 60
    told[:] = [old, old]
    with pytest.raises(ConfigError, match="lacks files; make it again: urbancross index --rebuild"):
        Index.at(tmp_path / "a", TABLE)


def test_an_open_index_goes_on_answering_when_its_files_are_gone(tmp_path: Path):
    model = searchable.model_in(tmp_path)
    add_shard(tmp_path / "a", model, 0)
    index(tmp_path / "a", codes="pq")
    held = Index.at(tmp_path / "a", TABLE)
    assert held is not None
    before = [held.best(query, 10) for query in queries(3)]
    index(tmp_path / "a", codes="exact")
    assert [held.best(query, 10) for query in queries(3)] == before
