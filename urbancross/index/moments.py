"""Times as archives tell them: a year, a month, a day, a moment or an interval of these, as spans in microseconds."""

import re
from datetime import UTC, datetime, timedelta

from urbancross.errors import ConfigError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
PARTS = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?$")

Span = tuple[int, int]  # first and last microsecond since 1970, both within


def span_of(text: str) -> Span:
    """The time that an ISO 8601 text stands for: `2024` is the whole year, `2024-05` the month, `a/b` from a to b.

    A moment without a zone is one in UTC.

    Raises:
        ValueError: it is none of these.
    """
    first, slash, last = text.strip().partition("/")
    if slash:
        span = (_span(first)[0], _span(last)[1])
        if span[0] > span[1]:
            raise ValueError(f"{text} ends before it begins")
        return span
    return _span(first)


def _span(text: str) -> Span:
    if parts := PARTS.match(text):
        year, month, day = (int(part) if part else None for part in parts.groups())
        start = datetime(year or 1, month or 1, day or 1, tzinfo=UTC)
        if day is not None:
            end = start + timedelta(days=1)
        elif month is not None:
            end = (start + timedelta(days=31)).replace(day=1)
        else:
            end = (start + timedelta(days=366)).replace(month=1, day=1)
        return _microseconds(start), _microseconds(end) - 1
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return _microseconds(moment), _microseconds(moment)


def _microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND


def told_span(text: str, flag: str) -> Span:
    """As `span_of`, of a flag.

    Raises:
        ConfigError: it is no time.
    """
    try:
        return span_of(text)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{flag} {text}: want a time such as 2024, 2024-05, 2024-05-17 or 2024-05-17T10:30Z"
        ) from None
