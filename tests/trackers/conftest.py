"""The scenario's store, made once."""

import pytest

from harness.store import Store
from tests.store.scenario import build_scenario


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scenario, read only: tests derive others from it."""
    return build_scenario(tmp_path_factory.mktemp("trackers") / "results")
