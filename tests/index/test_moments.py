"""Times as archives tell them, against datetimes written out."""

from datetime import UTC, datetime, timedelta

import pytest

from urbancross.errors import ConfigError
from urbancross.index.moments import span_of, told_span


def microseconds(*told: int) -> int:
    return (datetime(*told, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "first", "after"),
    [
        ("2024", (2024, 1, 1), (2025, 1, 1)),
        ("2024-02", (2024, 2, 1), (2024, 3, 1)),  # a leap year
        ("2023-02", (2023, 2, 1), (2023, 3, 1)),
        ("2024-12", (2024, 12, 1), (2025, 1, 1)),
        ("2024-05-17", (2024, 5, 17), (2024, 5, 18)),
        ("20240517", (2024, 5, 17), (2024, 5, 18)),
        ("2024-12-31", (2024, 12, 31), (2025, 1, 1)),
        ("1969-12-31", (1969, 12, 31), (1970, 1, 1)),  # before the count begins
        (" 2024 ", (2024, 1, 1), (2025, 1, 1)),
        ("2024/2025-03", (2024, 1, 1), (2025, 4, 1)),
        ("2024-05-17/2024-05-17", (2024, 5, 17), (2024, 5, 18)),
    ],
)
def test_a_date_stands_for_all_of_its_time(text: str, first: tuple[int, ...], after: tuple[int, ...]):
    assert span_of(text) == (microseconds(*first), microseconds(*after) - 1)


@pytest.mark.parametrize("text", ["9999", "9999-12", "9999-12-31", "2024/9999"])
def test_the_last_year_there_is_has_an_end(text: str):
    assert span_of(text)[1] == microseconds(9999, 12, 31, 23, 59, 59, 999_999)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-05-17T10:30Z", (2024, 5, 17, 10, 30)),
        ("2024-05-17T10:30:01.000002Z", (2024, 5, 17, 10, 30, 1, 2)),
        ("2024-05-17T10:30", (2024, 5, 17, 10, 30)),  # without a zone: UTC
        ("2024-05-17 10:30", (2024, 5, 17, 10, 30)),
        ("2024-05-17T10:30+02:00", (2024, 5, 17, 8, 30)),
        ("2024-05-17T00:30+02:00", (2024, 5, 16, 22, 30)),
    ],
)
def test_a_moment_is_one_microsecond_in_utc(text: str, moment: tuple[int, ...]):
    assert span_of(text) == (microseconds(*moment),) * 2


def test_an_interval_goes_from_the_start_of_the_first_to_the_end_of_the_second():
    assert span_of("2024-05-17T10:30Z/2024-06") == (microseconds(2024, 5, 17, 10, 30), microseconds(2024, 7, 1) - 1)


NONSENSE = [
    "",
    "/",
    "2024/",
    "/2024",
    "soon",
    "2024-13",
    "2024-00",
    "2024-05-00",
    "20240500",
    "2024-02-30",
    "2024-5",
    "0000",
    "24",
    "2025/2024",
    "2024-W20",
]


@pytest.mark.parametrize("text", NONSENSE)
def test_what_is_no_time_is_met_with_what_one_looks_like(text: str):
    with pytest.raises(ValueError, match="."):
        span_of(text)
    with pytest.raises(ConfigError, match=r"^--since .*: want a time such as 2024, 2024-05"):
        told_span(text, "--since")
