"""Optuna reads the studies that are exported: every trial as the store has it, and the same best ones."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest

from harness.errors import UserError
from harness.history import history
from harness.search import best_trial
from harness.store import Store
from harness.suite import load_suite
from harness.trackers import export_studies
from tests.in_process import planned, swept
from tests.report.stores import derive
from tests.store.scenario import SWEEP

SUITE = """
name: searched
question: Which learning rate?
models: [./tiny]
recipes:
  sft:
    - sft:
        {steps: 8, batch_size: 1, max_length: 128, warmup_fraction: 0, learning_rate: {min: 1e-4, max: 1.0, log: true}}
measure:
  gold: {limit: 32, max_new_tokens: 8}
objectives: {gold_reward: maximize}
constraints: {kl: {max: 5}}
precision: float32
sampler: random
seeds: [3]
early_stopping: {training: {metric: loss, rungs: [0.25, 0.5], after: 2}}
budget: {trials_per_cell: 6, batch: 2}
"""
SEVERAL = """
name: several
models: [./tiny]
recipes:
  tuned:
    - sft:
        steps: 2
        batch_size: {values: [1, 2]}
        max_length: 128
        learning_rate: {min: 1e-4, max: 1e-2, log: true}
        lora_rank: {values: [0, 2]}
measure:
  gold: {limit: 8, max_new_tokens: 8}
objectives: {gold_reward: maximize, kl: minimize}
precision: float32
sampler: random
budget: {trials_per_cell: 3, batch: 3}
"""


@pytest.fixture(scope="module")
def results(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two sweeps: one that stops trials early, and one of two objectives."""
    folder = tmp_path_factory.mktemp("searches")
    (folder / "tiny").symlink_to(tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        # The trials that are drawn go by the model's name, which must not be another one in every run of the tests.
        patch.chdir(folder)
        for name, text in (("searched", SUITE), ("several", SEVERAL)):
            (folder / f"{name}.yaml").write_text(text)
            swept(planned(folder / f"{name}.yaml", folder / "results"), folder / "results")
        yield folder / "results"


def _sweep(results: Path, name: str) -> str:
    return load_suite(results.parent / f"{name}.yaml").sweep_id()


def _load(file: Path, study: str) -> optuna.Study:
    return optuna.load_study(study_name=study, storage=f"sqlite:///{file}")


def _content(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [
        (t.number, t.state, t.params, t.values, t.distributions, t.intermediate_values, t.user_attrs, t.datetime_start)
        for t in study.get_trials()
    ]


@pytest.fixture(scope="module")
def exported(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("studies") / "deeper" / "studies.db"
    for name in ("searched", "several"):
        export_studies(Store(results), _sweep(results, name), str(file))
    return file


def test_each_cell_is_a_study_with_its_trials_as_the_store_has_them(results: Path, exported: Path) -> None:
    store, sweep = Store(results), _sweep(results, "searched")
    study = _load(exported, f"{sweep}/sft/{_label(exported)}")
    assert [d.name for d in study.directions] == ["MAXIMIZE"]
    assert study.metric_names == ["gold_reward"]
    trials = study.get_trials()
    rows = store.query(
        "SELECT trial, seed, state, settings, objectives, artifact, seconds, recorded_at FROM trials "
        "WHERE sweep = ? AND phase = 'tune' ORDER BY trial",
        [sweep],
    ).rows()
    states = {"complete": "COMPLETE", "pruned": "PRUNED"}
    assert {state for _, _, state, *_ in rows} == set(states)
    assert len(trials) == len(rows) == 6
    for trial, (number, seed, state, settings, objectives, artifact, seconds, at) in zip(trials, rows, strict=True):
        assert (trial.number, trial.user_attrs["trial"], trial.user_attrs["seed"]) == (number, number, seed)
        assert trial.state.name == states[state]
        assert trial.params == json.loads(settings)
        assert trial.distributions == {"sft.learning_rate": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)}
        assert trial.user_attrs.get("artifact") == artifact
        assert trial.user_attrs["seconds"] == seconds
        assert trial.datetime_complete is not None
        assert trial.datetime_start is not None
        ended = trial.datetime_complete.astimezone(datetime.UTC).replace(tzinfo=None)
        assert ended == at
        # Both are of one process: what lies between them is the trial.
        assert (trial.datetime_complete - trial.datetime_start).total_seconds() == pytest.approx(seconds, abs=1.0)
        if state == "complete":
            assert trial.values == [json.loads(objectives)["gold_reward"]]
            assert trial.user_attrs["fixed settings"]["sft.max_length"] == 128
            assert "sft.learning_rate" not in trial.user_attrs["fixed settings"]
        else:
            assert trial.user_attrs["failure"] == "pruned"


def _label(exported: Path) -> str:
    names = optuna.get_all_study_names(f"sqlite:///{exported}")
    (label,) = {name.split("/")[2] for name in names}
    assert label.startswith("tiny-")
    return label


def test_its_best_trial_is_the_one_that_the_sweep_chose(results: Path, exported: Path) -> None:
    suite, sweep = load_suite(results.parent / "searched.yaml"), _sweep(results, "searched")
    study = _load(exported, f"{sweep}/sft/{_label(exported)}")
    past = history(Store(results), suite, sweep, "sft", "./tiny")
    best = best_trial(past, ["maximize"])
    assert best is not None
    feasible = [p for p in past if p.usable and all(v <= 0 for v in p.violations.values())]
    assert feasible
    assert study.best_trial.number == best.number
    assert study.best_trial.params == best.settings


def test_rungs_are_intermediate_values_as_they_were_logged(results: Path, exported: Path) -> None:
    store, sweep = Store(results), _sweep(results, "searched")
    study = _load(exported, f"{sweep}/sft/{_label(exported)}")
    curves = "SELECT DISTINCT step, value FROM training WHERE sweep = ? AND metric = 'loss' AND trial = ?"
    for trial in study.get_trials():
        loss = dict(store.query(curves, [sweep, trial.number]).rows())
        reached = [value for step, value in sorted(loss.items()) if step <= 2]
        assert trial.intermediate_values[1] == pytest.approx(sum(reached) / len(reached))
        assert trial.intermediate_values[1] > 0
        if trial.state.name == "COMPLETE":
            later = [value for step, value in sorted(loss.items()) if 2 < step <= 4]
            assert trial.intermediate_values[2] == pytest.approx(sum(later) / len(later))
            assert max(loss) == 8


def test_several_objectives_and_every_kind_of_space(results: Path, exported: Path) -> None:
    store, sweep = Store(results), _sweep(results, "several")
    study = _load(exported, f"{sweep}/tuned/{_label(exported)}")
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["gold_reward", "kl"]
    rows = store.query("SELECT trial, settings, objectives FROM trials WHERE sweep = ? AND phase = 'tune'", [sweep])
    stored = {n: (json.loads(s), json.loads(o)) for n, s, o in rows.rows()}
    assert len(stored) == 3
    for trial in study.get_trials():
        settings, objectives = stored[trial.number]
        assert trial.params == settings
        assert trial.values == [objectives["gold_reward"], objectives["kl"]]
        assert trial.distributions["sft.lora_rank"] == optuna.distributions.CategoricalDistribution((0, 2))
    front = {
        n
        for n, (_, o) in stored.items()
        if not any(p["gold_reward"] >= o["gold_reward"] and p["kl"] <= o["kl"] and p != o for _, p in stored.values())
    }
    assert {trial.number for trial in study.best_trials} == front


def test_again_changes_nothing_and_a_later_state_replaces_the_earlier(
    results: Path, exported: Path, tmp_path: Path
) -> None:
    store, sweep = Store(results), _sweep(results, "searched")
    file, name = tmp_path / "studies.db", f"{sweep}/sft/{_label(exported)}"
    assert export_studies(store, sweep, f"sqlite:///{file}") == {name: 6}
    before = _content(_load(file, name))
    identity = _load(file, name)._study_id
    export_studies(store, sweep, str(file))
    assert (_load(file, name)._study_id, _content(_load(file, name))) == (identity, before)

    def other(frame: pl.DataFrame) -> pl.DataFrame:
        tuning = frame.filter((pl.col("sweep") == sweep) & (pl.col("phase") == "tune"))
        states = pl.DataFrame({"trial": [0, 1, 2], "now": ["failed", "infeasible", "running"]})
        last = tuning.group_by("trial").last().select(frame.columns).cast(frame.schema)
        changed = last.join(states.cast({"trial": frame.schema["trial"]}), on="trial").with_columns(
            state=pl.col("now"), objectives=pl.lit(None, dtype=frame.schema["objectives"])
        )
        return pl.concat([frame, changed.select(frame.columns)])

    later = derive(store, tmp_path / "later", {"trial_events": other})
    export_studies(later, sweep, str(file))
    states = [(t.state.name, t.user_attrs["state"]) for t in _load(file, name).get_trials()]
    assert states[:3] == [("FAIL", "failed"), ("FAIL", "infeasible"), ("RUNNING", "running")]
    assert len(states) == 6
    assert optuna.get_all_study_names(f"sqlite:///{file}") == [name]
    assert _load(file, name).get_trials()[2].datetime_complete is None


def test_other_studies_of_a_storage_are_left_alone(results: Path, exported: Path, tmp_path: Path) -> None:
    store, sweep = Store(results), _sweep(results, "searched")
    url, name = f"sqlite:///{tmp_path / 'mine.db'}", f"{sweep}/sft/{_label(exported)}"
    mine = optuna.create_study(study_name="mine", storage=url)
    mine.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    export_studies(store, sweep, url)
    assert optuna.get_all_study_names(url) == ["mine", name]
    optuna.delete_study(study_name=name, storage=url)
    same = optuna.create_study(study_name=name, storage=url)
    same.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(UserError, match="has not made"):
        export_studies(store, sweep, url)
    assert len(optuna.load_study(study_name=name, storage=url).get_trials()) == 1


def test_a_study_that_was_being_written_when_its_process_died_is_written_again(
    results: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sweep = Store(results), _sweep(results, "searched")
    file, name = tmp_path / "studies.db", f"{sweep}/sft/{_label(exported)}"
    add = optuna.Study.add_trial

    def dies(self: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.user_attrs["trial"] == 3:
            raise InterruptedError("on purpose")
        add(self, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", dies)
        with pytest.raises(InterruptedError):
            export_studies(store, sweep, str(file))
    assert len(_load(file, name).get_trials()) == 3
    export_studies(store, sweep, str(file))
    assert _content(_load(file, name)) == _content(_load(exported, name))


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("{tmp}", "expected a file"),
        ("sqlite:///", "expected a file"),
        ("{tmp}/text.txt", "Optuna cannot keep studies there"),
        ("postgresql://me:{secret}@127.0.0.1:1/studies", "Optuna cannot keep studies there"),
        ("nonsense://x", "Optuna cannot keep studies there"),
    ],
)
def test_a_place_that_cannot_be_is_refused(results: Path, tmp_path: Path, to: str, words: str) -> None:
    (tmp_path / "text.txt").write_text("not a database, and long enough to be looked at as one" * 40)
    with pytest.raises(UserError, match=words) as refused:
        export_studies(Store(results), _sweep(results, "searched"), to.format(tmp=tmp_path, secret="hunter2"))
    assert "hunter2" not in str(refused.value)


def test_a_sweep_that_searched_nothing_is_refused(store: Store, tmp_path: Path) -> None:
    def final(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.filter(pl.col("phase") == "final")

    other = derive(store, tmp_path / "other", {"trial_events": final})
    with pytest.raises(UserError, match="no tuning trials"):
        export_studies(other, SWEEP, str(tmp_path / "x.db"))
    with pytest.raises(UserError, match="search spaces"):
        export_studies(store, SWEEP, str(tmp_path / "x.db"))
    assert not (tmp_path / "x.db").exists()
