"""What `explain` shows of a value."""

import pytest

from urbancross.explain import _short


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"12345", "5 bytes"),
        (0.5, 0.5),
        (None, None),
        ([1, 2], [1, 2]),
        (["a lake " * 20] * 3, "3 × " + ("a lake " * 20)[:60]),
        ([0.25] * 512, "512 × float"),
        ([{"area": 0.25, "bbox": [0, 0, 16, 16], "counts": "x" * 80}] * 4, "4 × (area, bbox, counts)"),
    ],
)
def test_a_person_can_read_what_a_row_holds(value: object, shown: object):
    assert _short(value) == shown
