"""Steps from the shards of an archive: the windows, and the same steps through Ray Data as from memory."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from urbancross import cli, storage
from urbancross.config import PretrainConfig
from urbancross.distributed.features import FeatureTables, make_features
from urbancross.distributed.feeding import Feeder, Shards, Windows, load_pairs
from urbancross.models import checkpoints, starter
from urbancross.pairs import Plan, Step


def test_windows_hold_each_shard_once_and_enough_pairs():
    counts = {f"part-{i:05d}": 10 + i % 3 for i in range(20)} | {"part-00020": 0}
    windows = Windows.of(counts, seed=0, least=50)
    assert sorted(name for window in windows.shards for name in window) == sorted(counts)[:-1]
    assert windows.pairs == [sum(counts[name] for name in window) for window in windows.shards]
    assert all(count >= 50 for count in windows.pairs)
    assert len(windows.pairs) > 2
    assert windows.shards != Windows.of(counts, seed=1, least=50).shards
    assert Windows.of(counts, seed=0).pairs == [sum(counts.values())]


def test_a_pass_goes_through_every_window_batch_by_batch():
    windows = Windows([["a"], ["b", "c"]], [25, 42], seed=3)
    steps = windows.steps(10)
    assert steps == [2, 4]
    passes = [[windows.locate(6 * epoch + at, 10) for at in range(1, 7)] for epoch in range(8)]
    for epoch, found in enumerate(passes):
        assert {place[0] for place in found} == {epoch}
        assert sorted(place[1:] for place in found) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]
        firsts = [place[1] for place in found]
        assert firsts in ([0] * 2 + [1] * 4, [1] * 4 + [0] * 2)  # a window is read once a pass
    assert len({found[0][1] for found in passes}) == 2


def same(one: Step, other: Step) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_steps_through_ray_data_are_those_from_memory(captioned_set: Path, tmp_path: Path):
    home = tmp_path / "a"
    told = {"source": str(captioned_set), "archive": str(home), "domain": "d", "shard_tiles": 4, "workers": 1}
    cli.call("ingest", cli.VERBS["ingest"].kind(**told))
    archive = storage.archive(str(home))
    config = PretrainConfig(archive=str(home), out="o", workers=1)
    tables = make_features(archive, checkpoints.resolve("starter", 16), config, "given", "none")
    counts = {name: len(part(archive, tables, name)) for name in storage.shards(archive / tables.features)}
    learning = Plan(6, 0, captions=2, image_px=64, crop_px=48, tokenizer=starter.Tokenizer())
    for plan in (Plan(6, 0, captions=2), learning):
        shards = Shards(archive, tables, "train", Windows.of(counts, 0))
        memory = load_pairs(archive, tables, "train", images=True, written=True)
        assert shards.steps_per_epoch(6) == memory.steps_per_epoch(6)
        found = list(shards.steps(plan, 2, 11, 1, 2))
        assert len(found) == 10
        assert all(map(same, found, memory.steps(plan, 2, 11, 1, 2)))
    feed = shards.steps(replace(learning, size=10, image_px=640, crop_px=640), 1, 500, 0, 1)  # more than Ray may hold
    next(feed)
    time.sleep(5)  # the next blocks are made meanwhile
    began = time.process_time()
    time.sleep(2)
    assert time.process_time() - began < 1  # Ray Data's executor rests while nobody wants more
    feed.close()
    empty = replace(tables, segments="segments@none-kept", max_segments=2)  # a table, and no tile with a segment in it
    assert not Shards(archive, empty, "train", Windows.of(counts, 0)).with_segments
    parted = Shards(archive, tables, "train", Windows.of(counts, 0, least=6))
    assert len(parted.windows.pairs) > 1
    once = list(parted.steps(Plan(3, 0), 1, parted.steps_per_epoch(3), 0, 1))
    here = Feeder(parted, Plan(3, 0), 0, 1)
    assert all(map(same, once, map(here.step, range(1, len(once) + 1))))
    tiles = torch.cat([step.tile_keys for step in once]).tolist()
    assert len(set(tiles)) == len(tiles) >= 0.7 * len(memory)  # a short batch at the end of a window is left out
    assert max(tiles) < parted.tiles == len(memory)


def part(archive: storage.Place, tables: FeatureTables, name: str) -> range:
    """As many as the shard has usable pairs."""
    splits = storage.read_shard(archive / "tiles" / name, ["split"])["split"].to_pylist()
    missing = storage.read_shard(archive / tables.features / name, ["failure"])["failure"].to_pylist()
    return range(sum(split == "train" and failure is None for split, failure in zip(splits, missing, strict=True)))
