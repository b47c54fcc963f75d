"""The space of a sweep: which settings of `adapt` are searched, where, and what a point in it sets."""

import difflib
import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from urbancross.config import METHODS, AdaptConfig, MakerConfig, TuneConfig
from urbancross.errors import ConfigError

Point = dict[str, Any]
Kind = Literal["choice", "int", "float"]

DEFAULT = ("max_segments=0..10", "ratio=1..10", "pace=none,linear,root,step", "pace_start=0.1..0.9")
MOST_OF_GRID = 100_000
SEGMENTS = "max_segments"  # 0 stands for --segments none
IDLE: dict[str, tuple[str, Any]] = {"pace_start": ("pace", "none")}
"""Settings that mean nothing where another has this value; a point leaves them out there."""
FIXED = {*MakerConfig.model_fields, "checkpoint", "source", "target", "out", "device", "batch_tiles", "max_failures"}
FIXED |= {"checkpoint_steps", "evaluate_steps", "target_tiles"}


@dataclass(frozen=True)
class Dimension:
    """One setting and its values.

    Attributes:
        name: a field of `AdaptConfig`.
        choices: of kind `choice`.
        low, high: ends of the other kinds, both included.
        by_log: a range is searched evenly by its logarithm.
    """

    name: str
    kind: Kind
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    by_log: bool = False

    @property
    def count(self) -> float:
        """How many values there are."""
        return {"choice": len(self.choices), "int": self.high - self.low + 1}.get(self.kind, math.inf)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values there are; None for reals."""
        if self.kind == "int":
            return tuple(range(int(self.low), int(self.high) + 1))
        return self.choices if self.kind == "choice" else None

    def draw(self, source: random.Random) -> Any:
        if self.kind == "choice":
            return source.choice(self.choices)
        if self.kind == "int" and not self.by_log:
            return source.randint(int(self.low), int(self.high))
        if not self.by_log:
            return source.uniform(self.low, self.high)
        edge = 0.5 if self.kind == "int" else 0.0  # so that both ends are as likely as those between
        drawn = math.exp(source.uniform(math.log(self.low - edge), math.log(self.high + edge)))
        return min(max(round(drawn), int(self.low)), int(self.high)) if self.kind == "int" else drawn


def space_of(config: TuneConfig) -> list[Dimension]:
    """The dimensions of a sweep, those that others hang on first.

    Raises:
        ConfigError: a text is no dimension, names no setting that can be searched, or a value that it cannot have.
    """
    texts = config.space or [
        text for text in DEFAULT if not (config.segments == "none" and text.startswith(f"{SEGMENTS}="))
    ]
    found = [dimension(text) for text in texts]
    names = [dim.name for dim in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"--space {', '.join(sorted(twice))}: given twice; write all values into one")
    if config.segments == "none" and SEGMENTS in names:
        raise ConfigError("--segments none leaves nothing to count; take max_segments out of --space, or segments away")
    for name in names:
        if name in IDLE and IDLE[name][0] not in names and getattr(config, IDLE[name][0]) == IDLE[name][1]:
            flag, idle = IDLE[name]
            raise ConfigError(f"--space {name} means nothing with --{flag} {idle}; search {flag} too, or set it")
    return sorted(found, key=lambda dim: dim.name in IDLE)


def dimension(text: str) -> Dimension:
    """Read `pace=none,linear`, `ratio=1..10`, `head_lr=log:1e-5..1e-3`, or so many points of a range:
    `pace_start=0.1..0.9/5`.

    Raises:
        ConfigError: see `space_of`.
    """
    name, sign, told = text.partition("=")
    name, told = name.strip().lstrip("-").replace("-", "_"), told.strip()
    searched = set(AdaptConfig.model_fields) - FIXED
    if not sign or not told:
        raise ConfigError(f"--space {text}: want a setting and its values, such as ratio=1..10 or pace=none,linear")
    if name not in searched:
        alike = sorted(known for known in searched if name in known)[:3]
        close = alike or difflib.get_close_matches(name, searched, n=3) or ["head_lr", "ratio", "pace"]
        held = " is the same for all trials" if name in FIXED else " is no setting of adapt"
        raise ConfigError(f"--space {text}: {name}{held}; try {', '.join(close)}")
    span = re.fullmatch(r"(log:)?([^/]+)\.\.([^/]+?)(?:/(\d+))?", told)
    if span is None:
        return Dimension(name, "choice", tuple(dict.fromkeys(value(name, part, text) for part in told.split(","))))
    low, high = value(name, span[2], text), value(name, span[3], text)
    if isinstance(low, str | bool) or isinstance(high, str | bool) or not low < high < math.inf:
        raise ConfigError(f"--space {text}: a range runs from a number to a larger one")
    if span[1] and low <= 0:
        raise ConfigError(f"--space {text}: a range by its logarithm begins above 0")
    whole = isinstance(low, int) and isinstance(high, int)
    if span[4]:
        if int(span[4]) < 2:
            raise ConfigError(f"--space {text}: a range has two points or more; write .../5 for five")
        return Dimension(name, "choice", evenly(low, high, int(span[4]), bool(span[1]), whole))
    return Dimension(name, "int" if whole else "float", (), low, high, by_log=bool(span[1]))


def value(name: str, text: str, told: str) -> Any:
    """A value as the setting takes it.

    Raises:
        ConfigError: it cannot have it.
    """
    if name == SEGMENTS and text.strip() == "0":
        return 0
    field = AdaptConfig.model_fields[name]
    kind: Any = field.annotation
    try:
        return TypeAdapter(Annotated[kind, *field.metadata] if field.metadata else kind).validate_python(text.strip())
    except ValidationError as error:
        raise ConfigError(f"--space {told}: {error.errors()[0]['msg']}, got {text.strip()!r}") from None


def evenly(low: float, high: float, count: int, by_log: bool, whole: bool) -> tuple[Any, ...]:
    """Points of a range, both ends among them."""
    shares = [i / max(count - 1, 1) for i in range(count)]
    points = [low * (high / low) ** share if by_log else low + (high - low) * share for share in shares]
    return tuple(dict.fromkeys(round(point) if whole else float(f"{point:.6g}") for point in points))


def without_idle(point: Point) -> Point:
    """A point without the settings that mean nothing in it."""
    return {
        name: value
        for name, value in point.items()
        if name not in IDLE or point.get(IDLE[name][0], ...) != IDLE[name][1]
    }


def grid(space: Sequence[Dimension], seed: int) -> list[Point]:
    """All points, in an order drawn by the seed, so that the first of them lie everywhere.

    Raises:
        ConfigError: a dimension has no end of values.
    """
    for dim in space:
        if math.isinf(dim.count):
            raise ConfigError(f"--space {dim.name}: a grid wants points; write {dim.low:g}..{dim.high:g}/5 for five")
    if (count := math.prod(dim.count for dim in space)) > MOST_OF_GRID:
        raise ConfigError(
            f"--space has {count:,.0f} points, at most {MOST_OF_GRID:,} of a grid; give fewer, or --search tpe"
        )
    found: dict[str, Point] = {}
    for values in itertools.product(*(dim.values or () for dim in space)):
        point = without_idle(dict(zip((dim.name for dim in space), values, strict=True)))
        found.setdefault(repr(sorted(point.items())), point)
    points = list(found.values())
    random.Random(seed).shuffle(points)
    return points


def drawn(space: Sequence[Dimension], seed: int, number: int) -> Point:
    """The point of one number of a random search."""
    source = random.Random(f"{seed}-{number}")
    return without_idle({dim.name: dim.draw(source) for dim in space})


def settings_of(config: TuneConfig, point: Point) -> dict[str, Any]:
    """What `adapt` is given for a point: the flags of the sweep that are adapt's too, and the point over them.

    Only what was said, not what is by default: a method in the point may still fill in its own.
    """
    by_method = METHODS[config.method]
    said = {
        name: getattr(config, name)
        for name in AdaptConfig.model_fields
        if name in config.model_fields_set and not (name in by_method and getattr(config, name) == by_method[name])
    }
    told = said | point
    if told.get(SEGMENTS) == 0:
        del told[SEGMENTS]
        told["segments"] = "none"
    return told
