"""MLflow's own client reads what is written into a real SQLite store."""

import os
import shutil
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.store import Store
from harness.trackers import open_tracker
from harness.trackers._mlflow import _key
from tests.store.scenario import SWEEP
from tests.trackers.contract import Seen, TrackerContract


class TestMLflow(TrackerContract):
    """By its client."""

    name = "mlflow"

    empty: Path

    @pytest.fixture(autouse=True, scope="class")
    def _made_once(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
        """A database without an experiment: making its tables takes MLflow seconds."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")

        file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
        request.cls.empty = file

    def to(self, place: Path) -> str:
        if not place.exists():
            place.mkdir()
            shutil.copy(self.empty, place / "mlflow.db")
        return f"sqlite:///{place / 'mlflow.db'}"

    def tag(self, name: str) -> str:
        return _key(name)

    def seen(self, place: Path, sweep: str) -> list[tuple[str, Seen]]:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.to(place))
        experiment = client.get_experiment_by_name(sweep)
        assert experiment is not None
        found = []
        for run in client.search_runs([experiment.experiment_id], max_results=1000):
            seen = Seen(facts=dict(run.data.tags), settings=dict(run.data.params))
            assert run.info.run_name == run.data.tags["harness.run"]
            assert run.info.status == {"complete": "FINISHED", "pruned": "KILLED"}.get(seen.facts["state"], "FAILED")
            for name in run.data.metrics:
                points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                if name.startswith("train/"):
                    seen.curves[name] = sorted(points)
                else:
                    assert len(points) == 1
                    seen.figures[name] = points[0][1]
            found.append((run.info.run_name, seen))
        return found

    def test_when_it_began_and_ended_is_when_the_run_did(self, store: Store, tmp_path: Path) -> None:
        from mlflow import MlflowClient

        place = tmp_path / "place"
        self._tracked(store, place)
        client = MlflowClient(tracking_uri=self.to(place))
        experiment = client.get_experiment_by_name(SWEEP)
        assert experiment is not None
        assert experiment.tags["suite"] == "dpo_vs_ppo"
        took = {
            run.info.run_name: (run.info.end_time - run.info.start_time) / 1000
            for run in client.search_runs([experiment.experiment_id])
        }
        rows = store.query("SELECT recipe, phase, trial, seed, seconds FROM trials").rows()
        assert took == {
            f"{recipe}/smollm2-135m-instruct/{phase}-{trial:03d}-seed-{seed}": seconds
            for recipe, phase, trial, seed, seconds in rows
        }

    def test_the_users_own_server_is_taken_where_no_place_is_named(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mine.db'}")
        with open_tracker("mlflow", None, store, SWEEP) as tracker:
            assert "mine.db" in tracker.look
        assert (tmp_path / "mine.db").is_file()

    def test_a_store_that_is_none_is_refused(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "text.db").write_text("no database at all" * 100)
        for place in (str(tmp_path / "text.db"), "nonsense://x"):
            with (
                pytest.raises(UserError, match="MLflow at "),
                open_tracker("mlflow", place, store, SWEEP),
            ):
                pass


def test_names_are_kept_within_what_mlflow_takes() -> None:
    assert _key("tune/cpu fp32/a, b=c?/acc") == "tune/cpu fp32/a_ b_c_/acc"
    assert ".." not in _key("../../x")
