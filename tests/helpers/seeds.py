"""Seeds and examples of randomised tests: some in every run, all of them in `make test-all`."""

from typing import Any

import pytest
from hypothesis import settings

# No deadline: an example may take long on a busy machine.
settings.register_profile("some", deadline=None, max_examples=20)
settings.register_profile("all", deadline=None, max_examples=300)


def configure(config: pytest.Config) -> None:
    """Make hypothesis try all examples if tests marked `full` run, otherwise some."""
    settings.load_profile("some" if "not full" in config.option.markexpr else "all")


def seeds(count: int) -> list[Any]:
    """Return the seeds 0 to `count` - 1 as parameters; the first tenth is not marked `full`."""
    few = max(1, count // 10)
    return [
        pytest.param(seed, marks=[] if seed < few else pytest.mark.full, id=str(seed))
        for seed in range(count)
    ]
