"""A sweep in which nothing is wrong, on one target."""

import shutil
from collections.abc import Iterator

import polars as pl
import pytest

from harness.gates._evidence import Evidence, read_evidence
from harness.models import cache_folder
from harness.store import Store
from tests.gates.stores import answers, change, texts
from tests.report.stores import derive, keep, nothing
from tests.store.scenario import SWEEP, build_scenario


@pytest.fixture(scope="session")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scenario as it is: its figures are drawn, and its wrong answers are all "D"."""
    return build_scenario(tmp_path_factory.mktemp("scenario") / "results")


@pytest.fixture(scope="session")
def healthy(scenario: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every model has 28 of 40 right, and no answer is given more often than another."""
    good = answers(28)
    used = keep(
        pl.col("measurement").is_in(
            scenario.query(
                "SELECT measurement FROM raw.measurement_links WHERE phase = 'final' AND target = 'cpu-fp32'"
            )["measurement"].to_list()
        )
    )
    whole = change(
        scenario,
        tmp_path_factory.mktemp("whole") / "results",
        {
            "mmlu": ("acc", good),
            "hellaswag": ("acc_norm", good),
            "truthfulqa_mc2": ("acc", good),
            "gsm8k": ("exact_match_flexible", texts(28)),
        },
        measurement_links=used,
        measurements=used,
        profile_samples=nothing,
    )
    # What no test looks at makes every store made from this one slower to write.
    return derive(whole, tmp_path_factory.mktemp("healthy") / "results", {"samples": used})


@pytest.fixture(scope="session")
def evidence(healthy: Store) -> Evidence:
    """The healthy sweep as the gates see it."""
    return read_evidence(healthy, SWEEP)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Arrow files go where the test run's other files go; lm-eval's list of tasks is not read again if it is known."""
    folder = tmp_path_factory.mktemp("cache")
    for known in cache_folder().glob("lm-eval-*-tasks-*.json"):
        shutil.copy(known, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(folder))
        yield
