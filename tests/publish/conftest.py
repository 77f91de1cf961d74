"""The scenario's store and export, made once."""

import datetime
from pathlib import Path

import pytest

from harness.publish import publish
from harness.store import Store
from tests.store.scenario import SWEEP, build_scenario

NOW = datetime.datetime(2026, 3, 2, 12, 0, tzinfo=datetime.UTC)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scenario, read only: tests derive others from it."""
    return build_scenario(tmp_path_factory.mktemp("publish") / "results")


@pytest.fixture(scope="session")
def export(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenario's export, read only: tests that change one copy it."""
    folder = tmp_path_factory.mktemp("site") / "export"
    publish(store, [SWEEP], folder, now=NOW)
    return folder
