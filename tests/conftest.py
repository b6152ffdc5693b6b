"""Fixtures and settings of all tests here."""

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
    """Put long files first, so that no process begins one when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
