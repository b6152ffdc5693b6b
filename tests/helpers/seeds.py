"""Seeds for tests that try many: a tenth in every run, all of them in `make test-all`."""

from typing import Any

import pytest


def seeds(count: int) -> list[Any]:
    """The seeds from 0 to `count`, all but the first tenth marked `full`."""
    few = max(1, count // 10)
    return [
        pytest.param(seed, marks=[] if seed < few else pytest.mark.full, id=str(seed))
        for seed in range(count)
    ]
