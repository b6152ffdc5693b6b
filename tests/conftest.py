"""Fixtures and settings of all tests."""

import pytest

pytest.register_assert_rewrite("tests.helpers")

from tests.helpers.fixtures import one_process as one_process  # noqa: E402
from tests.helpers.fixtures import own_cache as own_cache  # noqa: E402
from tests.helpers.fixtures import own_signals as own_signals  # noqa: E402
from tests.helpers.fixtures import rows as rows  # noqa: E402
from tests.helpers.seeds import configure  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    configure(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, so that the processes end at about the same time."""
    items.sort(key=seconds_of_file, reverse=True)


def seconds_of_file(item: pytest.Item) -> float:
    marker = item.get_closest_marker("long")
    return float(marker.args[0]) if marker else 0.0
