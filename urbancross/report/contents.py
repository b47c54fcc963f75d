"""What a report is made of: counts, metrics, curves, embeddings and pictures, as plain values."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

BEFORE, AFTER = "source only", "adapted"  # the two models that the verdict compares


@dataclass(frozen=True)
class Hit:
    tile_id: str
    score: float
    image: bytes  # encoded: JPEG, PNG or WebP
    caption: str = ""


@dataclass(frozen=True)
class DomainGap:
    """How far apart one model places two domains."""

    source: np.ndarray  # [n, D] embeddings
    target: np.ndarray  # [m, D]
    proxy_a_distance: float  # 0: a classifier cannot tell the domains apart; 2: it always can
    mmd2: float
    mmd2_p: float


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    advice: str = ""
    """What adaptation said at its end, without target pairs."""
    balances: list[dict[str, Any]] = field(default_factory=list)
    """One a stage and archive: stage, archive, read, written, done_before, skipped, failed."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """archive, table, reason, count."""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Model -> its metrics.json."""
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Verb -> its events in order; any key may be absent from an event."""
    gaps: dict[str, DomainGap] = field(default_factory=dict)
    """Model -> its domain gap."""
    queries: dict[str, dict[str, list[Hit]]] = field(default_factory=dict)
    """Query -> model -> its best tiles, best first."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Verb -> its full configuration."""
