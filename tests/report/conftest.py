"""The scenario's store and report, made once."""

from pathlib import Path

import pytest

from harness.report import write_report
from harness.store import Store
from tests.store.scenario import SWEEP, build_scenario


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scenario, read only: tests derive others from it."""
    return build_scenario(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture(scope="session")
def page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenario's report."""
    return write_report(store, SWEEP, tmp_path_factory.mktemp("reports"))
