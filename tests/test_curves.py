"""Curves of a training: what TensorBoard reads back, and the line for a terminal."""

from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from urbancross import curves


def test_a_line_shows_how_a_number_went():
    events = [{"loss": float(10 - i)} for i in range(8)]
    assert curves.summary(events) == "loss 10 █▇▆▅▄▃▂▁ 3"
    assert curves.summary(events, "margin") == ""
    assert len(curves.sparkline([float(i) for i in range(1000)])) == curves.WIDTH
    assert set(curves.sparkline([2.0] * 9)) == {"▁"}


def read(folder: Path) -> list[tuple[int, str, float]]:
    """The scalars of all event files: records of 8 bytes length, 4 of a checksum, the data, 4 of a checksum."""
    found = []
    for file in sorted(folder.glob("events*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += 16 + length
    return found


def test_tensorboard_reads_each_number_at_its_place_in_the_run(tmp_path: Path):
    before = [{"stage": "heads", "step": step, "loss": 2.0} for step in range(1, 5)]
    told = [(5, "heads/loss", 1.5), (5, "heads/pace", pytest.approx(0.25)), (6, "image/loss", 1.25)]
    for name, known in (("there", True), ("elsewhere", False)):
        shown = curves.Curves(tmp_path / name, before, known=known)
        shown.add({"stage": "heads", "step": 5, "loss": 1.5, "pace": 0.25})
        shown.add({"stage": "image", "step": 1, "loss": 1.25})
        shown.close()
        earlier = [] if known else [(step, "heads/loss", 2.0) for step in range(1, 5)]
        assert read(tmp_path / name) == earlier + told
