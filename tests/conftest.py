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
