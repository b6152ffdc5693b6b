"""Bars for shares, and units of sizes and times."""

import pytest
from rich.text import Text

from pipepar.format import bar, readable_bytes, readable_seconds


@pytest.mark.parametrize(
    ("share", "full"), [(0.0, 0), (0.5, 5), (0.96, 10), (1.0, 10), (1.3, 10), (-0.1, 0)]
)
def test_a_bar_has_the_given_width(share: float, full: int) -> None:
    assert Text.from_markup(bar(share, 10)).plain == "█" * full + "░" * (10 - full)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**30 - 1, "1.0 GiB"),
        (5 * 2**30, "5.0 GiB"),
        (3000 * 2**40, "3,000.0 TiB"),
    ],
)
def test_a_size_has_a_suitable_unit(count: int, expected: str) -> None:
    assert readable_bytes(count) == expected


def test_a_time_has_a_suitable_unit() -> None:
    assert readable_seconds(2.5e-5) == "25.0 us"
    assert readable_seconds(0.99999e-3) == "1.0 ms"
    assert readable_seconds(2.0) == "2.0 s"
