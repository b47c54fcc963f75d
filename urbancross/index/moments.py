"""Times as archives tell them: a year, a month, a day, a moment or an interval of these, as spans in microseconds."""

import calendar
import re
from datetime import UTC, datetime, timedelta

from urbancross.errors import ConfigError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
DAY = timedelta(days=1) // MICROSECOND
DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?$")
COMPACT = re.compile(r"(\d{4})(\d{2})(\d{2})$")

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
    if date := DATE.match(text) or COMPACT.match(text):
        year, month, day = (int(part or 1) for part in date.groups())
        first = datetime(year, month, day, tzinfo=UTC)
        last = first if date[2] else first.replace(month=12)
        if not date[3]:
            last = last.replace(day=calendar.monthrange(year, last.month)[1])
        return _microseconds(first), _microseconds(last) + DAY - 1
    if "W" in text.upper():  # of a week, Python would take the first moment
        raise ValueError(f"{text} is a week")
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
