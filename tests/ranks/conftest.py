"""Fixtures of tests that run on several ranks."""

import pytest

from pipepar.comm.group.launcher import launched
from tests.helpers.rank_fixtures import brief_measurements as brief_measurements
from tests.helpers.rank_fixtures import cache as cache
from tests.helpers.rank_fixtures import cached_graphs as cached_graphs
from tests.helpers.rank_fixtures import configure
from tests.helpers.rank_fixtures import graph as graph
from tests.helpers.rank_fixtures import shared as shared
from tests.helpers.rank_fixtures import world as world


def pytest_configure(config: pytest.Config) -> None:
    if launched():
        configure(config)
