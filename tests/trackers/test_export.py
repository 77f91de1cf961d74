"""`harness export` and `--track`, from the command line on."""

from pathlib import Path

import pytest

from harness.cli import main
from harness.store import Store
from harness.trackers import _open
from tests.store.scenario import SWEEP
from tests.trackers.contract import everything


def _absent(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kind = _open._Kind("no_such_module", f"posttrain-harness[{name}]", name)
    monkeypatch.setitem(_open.TRACKERS, name, kind)


def test_a_sweep_is_exported_once(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "board"
    command = ["export", "tensorboard", SWEEP, "--to", str(place), "--results", str(store.results)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"{SWEEP}: {len(everything(store))} runs written" in said
    assert f"tensorboard --logdir {place}" in said
    assert main(command) == 0
    assert f"{SWEEP}: all of it was there already" in capsys.readouterr().out
    assert len(list(place.rglob("*tfevents*"))) == len(everything(store))


def test_the_latest_sweep_is_meant_where_none_is_named(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "tensorboard", "--to", str(tmp_path / "board"), "--results", str(store.results)]) == 0
    assert capsys.readouterr().out.startswith(f"{SWEEP}: ")


def test_what_cannot_be_exported_is_bad_input(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _absent(monkeypatch, "wandb")
    results = ["--results", str(store.results)]
    assert main(["export", "wandb", SWEEP, *results]) == 2
    assert "pip install 'posttrain-harness[wandb]'" in capsys.readouterr().err
    assert main(["export", "tensorboard", "no-such-sweep", *results]) == 2
    assert SWEEP in capsys.readouterr().err
    assert main(["export", "tensorboard", "--results", str(tmp_path / "nothing")]) == 2
    assert "harness sweep" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    for kind in ("tensorboard", "mlflow"):
        assert main(["export", kind, "--to", str(tmp_path / "file" / "deeper"), *results]) == 2
        assert "in the way of a folder; name another place with --to" in capsys.readouterr().err


def test_a_tracker_that_is_missing_is_said_before_a_sweep_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _absent(monkeypatch, "mlflow")
    command = ["sweep", str(tmp_path / "not-even-there.yaml"), "--track", "mlflow", "--results", str(tmp_path / "r")]
    assert main(command) == 2
    assert "pip install 'posttrain-harness[mlflow]'" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_password_in_a_storage_is_not_printed(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.trackers.export_studies", lambda store, sweep, to: {"a": 1})
    to = "postgresql://me:open-sesame@127.0.0.1:1/studies"
    assert main(["export", "optuna", SWEEP, "--to", to, "--results", str(store.results)]) == 0
    assert "open-sesame" not in capsys.readouterr().out
