"""The curves of a training while it runs: for TensorBoard, and as a line for a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24


class Curves:
    """Writes each event's numbers for TensorBoard; an event's step comes from its place in the run."""

    def __init__(self, folder: Path, behind: Sequence[dict[str, Any]] = (), known: bool = True) -> None:
        """
        Args:
            behind: events of an earlier run that this one goes on from.
            known: whether it wrote them in this folder; what it wrote after them does not count.
        """
        self.writer = SummaryWriter(str(folder), purge_step=len(behind) if known and behind else None, flush_secs=10)
        self.count = len(behind) if known else 0
        for event in () if known else behind:
            self.add(event)

    def add(self, event: dict[str, Any]) -> None:
        self.count += 1
        for name, value in event.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{event['stage']}/{name}", value, self.count)

    def close(self) -> None:
        self.writer.close()


def sparkline(values: list[float]) -> str:
    """Up to `WIDTH` bars, each the mean of its part of the values."""
    parts = [values[i * len(values) // WIDTH : (i + 1) * len(values) // WIDTH] for i in range(WIDTH)]
    means = [sum(part) / len(part) for part in parts if part]
    low, high = min(means, default=0), max(means, default=0)
    return "".join(BARS[round((mean - low) / ((high - low) or 1) * (len(BARS) - 1))] for mean in means)


def summary(events: list[dict[str, Any]], key: str = "loss") -> str:
    """How a number went, in one line: `loss 5.21 ▇▅▃▂▁ 1.02`; empty where no event has it."""
    values = [float(event[key]) for event in events if key in event]
    return f"{key} {values[0]:.3g} {sparkline(values)} {values[-1]:.3g}" if values else ""
