"""Seeds and examples for tests that try many: some in every run, all of them in `make test-all`."""

from typing import Any

import pytest
from hypothesis import settings

# A busy machine may need long for an example; that is no failure.
settings.register_profile("some", deadline=None, max_examples=20)
settings.register_profile("all", deadline=None, max_examples=300)


def configure(config: pytest.Config) -> None:
    """Choose how many examples hypothesis tries, by whether tests marked `full` run."""
    settings.load_profile("some" if "not full" in config.option.markexpr else "all")


def seeds(count: int) -> list[Any]:
    """The seeds from 0 to `count`, all but the first tenth marked `full`."""
    few = max(1, count // 10)
    return [
        pytest.param(seed, marks=[] if seed < few else pytest.mark.full, id=str(seed))
        for seed in range(count)
    ]
