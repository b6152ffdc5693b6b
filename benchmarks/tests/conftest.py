"""Fixtures and settings of the tests of the benchmarks."""

import pytest

from pipepar.comm.group.launcher import launched
from tests.helpers.fixtures import one_process as one_process
from tests.helpers.fixtures import own_cache as own_cache
from tests.helpers.fixtures import own_signals as own_signals
from tests.helpers.rank_fixtures import configure
from tests.helpers.rank_fixtures import world as world


def pytest_configure(config: pytest.Config) -> None:
    if launched():
        configure(config)
