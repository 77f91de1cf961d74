"""What every method that makes a dataset must do. Subclass `MakingContract` for each, with settings for a quick run."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from harness import method as method_module
from harness.errors import PrunedError, UserError
from harness.execute._made import made_dataset, made_rows
from harness.execute._spec import StageSpec
from harness.execute._stage import run_stage
from harness.folders import Folders
from harness.method import Inputs, find_method
from harness.models import load_model
from harness.plan import gather_facts
from harness.resolve import Facts, Run, chain
from harness.store import Store
from harness.suite import load_suite
from methods._making import Text, Writer
from tests.methods.contract import ROWS, SUITE, WRONG
from tests.methods.helpers import Log, make_context

__all__ = ["MakingContract", "scripted", "with_room"]

Steps = Sequence[Mapping[str, object]]

LEARNS = {"instructions": "sft", "preferences": "simpo"}
"""Kind → a method that trains on it."""
BASE = frozenset({"rows", "length", "eos_fraction"})


def with_room(tiny_model: Path, folder: Path, positions: int = 4096) -> Path:
    """The tiny model with room for long dialogues: a template's examples are long in a vocabulary of 600."""
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    return folder


def scripted(monkeypatch: pytest.MonkeyPatch, *batches: Sequence[str]) -> list[list[str]]:
    """Let the policy say these texts, batch after batch; what it is asked is added to the list that comes back."""
    script, asked = iter(batches), []

    class Scripted(Writer):
        def _batch(self, chats: Sequence[Sequence[int]], temperature: float | None, new: int | None) -> list[Text]:
            asked.append([self.tokenizer.decode(list(ids)) for ids in chats])
            return [Text(text, [5], ended=True, plain=self.plain(text)) for text in next(script)]

    monkeypatch.setattr("methods._making_method.Writer", Scripted)
    return asked


class MakingContract:
    """Runs from a recipe, repeats, goes on in rounds, logs and records, leaves a set that loads and can be learned."""

    name: ClassVar[str]
    quick: ClassVar[Mapping[str, object]] = {
        "prompts": 8,
        "batch_size": 8,
        "max_new_tokens": 6,
        "unfinished": "keep",
    }
    logged: ClassVar[frozenset[str]]
    """What it logs at every batch, beside `BASE`."""
    recorded: ClassVar[frozenset[str]]
    """The kinds of what it records."""
    columns: ClassVar[frozenset[str]]
    """A row's columns beside those of its kind and of the prompt."""

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder with a small set of each kind; prompts have a column of their own."""
        folder = tmp_path_factory.mktemp("data")
        for kind, rows in ROWS.items():
            (folder / "some" / kind).mkdir(parents=True)
            given = [
                {**row, "constraints": json.dumps([{"kind": "no_comma", "value": n}])} for n, row in enumerate(rows)
            ]
            (folder / "some" / kind / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        return folder

    @pytest.fixture(scope="class")
    def model(self, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The tiny model with room for a judge's examples."""
        return with_room(tiny_model, tmp_path_factory.mktemp("models") / "roomy")

    @pytest.fixture(scope="class")
    def facts(self, model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
        """Of a suite that makes, and learns from what was made."""
        return gather_facts(load_suite(self._suite(model, data, tmp_path_factory.mktemp("suite"))))

    @pytest.fixture(scope="class")
    def ran(self, facts: Facts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log]:
        """Where the method has run with seed 0, and what it logged."""
        results, log = tmp_path_factory.mktemp("results"), Log()
        run_stage(self._stages(facts)[0], results, log)
        return results, log

    def _suite(self, model: Path, data: Path, folder: Path, **changes: object) -> Path:
        method = find_method(self.name)
        settings = {**self.quick, "dataset": f"some/{method.dataset_kind}", **changes}
        learning = {LEARNS[str(method.makes)]: {"dataset": "made", "steps": 2, "batch_size": 2}}
        recipes = {
            "plain": [{self.name: settings}, learning],
            "rounds": [{"repeat": 2, "steps": [{self.name: settings}]}],
        }
        path = folder / "contract.yaml"
        path.write_text(SUITE.format(model=model, data=data, recipes=json.dumps(recipes)))
        return path

    def _stages(self, facts: Facts, recipe: str = "plain", seed: int = 0) -> list[StageSpec]:
        return chain(facts, Run(recipe, facts.suite.models[0], seed, {}))

    def test_what_it_made_loads_as_its_kind_and_the_next_step_learns_from_it(
        self, facts: Facts, ran: tuple[Path, Log]
    ) -> None:
        making, learning = self._stages(facts)
        artifacts, method = Folders(ran[0]).artifacts, find_method(self.name)
        rows = made_rows(artifacts / making.key)
        dataset = made_dataset(artifacts / making.key, method.makes or "text")
        assert len(dataset) == len(rows) > 0
        columns = {"instructions": {"completion"}, "preferences": {"chosen", "rejected"}}[str(method.makes)]
        assert all(set(row) == {"prompt", "constraints"} | columns | self.columns for row in rows)
        # A further column of the prompt's row stays with it.
        known = {json.dumps(row["prompt"]): n for n, row in enumerate(ROWS[str(method.dataset_kind)])}
        assert all(json.loads(str(r["constraints"]))[0]["value"] == known[json.dumps(r["prompt"])] for r in rows)
        run_stage(learning, ran[0], Log())
        load_model(artifacts / learning.key)

    def test_the_same_seed_makes_the_same_rows_and_another_seed_others(
        self, facts: Facts, ran: tuple[Path, Log], tmp_path: Path
    ) -> None:
        spec, other = self._stages(facts)[0], self._stages(facts, seed=1)[0]
        for stage in (spec, other):
            run_stage(stage, tmp_path, Log())
        first = _rows(ran[0], spec)
        assert first == _rows(tmp_path, spec)
        assert first != _rows(tmp_path, other)

    def test_each_round_takes_other_prompts(self, facts: Facts, ran: tuple[Path, Log], tmp_path: Path) -> None:
        first, second = self._stages(facts, "rounds")
        assert first.key == self._stages(facts)[0].key
        run_stage(second, tmp_path, Log())
        before, after = (
            {json.dumps(row["prompt"]) for row in _rows(results, spec)}
            for results, spec in ((ran[0], first), (tmp_path, second))
        )
        assert after
        assert not before & after

    def test_every_batch_is_logged_and_what_was_said_is_stored(self, facts: Facts, ran: tuple[Path, Log]) -> None:
        results, log = ran
        spec = self._stages(facts)[0]
        total = log.steps[0][1]
        assert [(step, of) for step, of, _ in log.steps] == [(n + 1, total) for n in range(total)]
        assert all(set(metrics) == BASE | self.logged for _, _, metrics in log.steps)
        store = Store(results)
        store.ingest()
        with store.reading():
            said = store.query("SELECT * FROM raw.generations WHERE stage = ?", [spec.key]).to_dicts()
            ((stored,),) = store.query("SELECT metrics FROM stages WHERE stage = ?", [spec.key]).rows()
        metrics = json.loads(stored)
        assert metrics["rows"] == len(_rows(results, spec)) == log.values("rows")[-1]
        assert metrics["prompts"] == 8
        assert metrics["sampled_tokens"] > 0
        assert {one["kind"] for one in said} == self.recorded
        assert {one["row"] for one in said} == set(range(8))
        assert all(one["prompt"] for one in said)
        assert any(one["kept"] for one in said)

    def test_stops_at_its_deadline_and_leaves_nothing(
        self, facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec, log = self._stages(facts)[0], Log()

        def late(step: int, total: int, metrics: Mapping[str, float]) -> None:
            log(step, total, metrics)
            monkeypatch.setattr(method_module, "time", SimpleNamespace(monotonic=lambda: math.inf))

        with pytest.raises(PrunedError, match="deadline"):
            run_stage(
                spec.model_copy(update={"limit_s": 1e6, "params": {**spec.params, "batch_size": 4}}), tmp_path, late
            )
        assert len(log.steps) == 1
        assert not (Folders(tmp_path).artifacts / spec.key).exists()

    def test_another_kind_of_dataset_is_refused_before_anything_runs(
        self, model: Path, data: Path, tmp_path: Path
    ) -> None:
        kind = str(find_method(self.name).dataset_kind)
        suite = load_suite(self._suite(model, data, tmp_path, dataset=f"some/{WRONG[kind]}"))
        with pytest.raises(UserError, match=rf"some/{WRONG[kind]}.*do not make {kind}; expected "):
            gather_facts(suite)

    def test_no_dataset_is_refused(self, model: Path, tmp_path: Path) -> None:
        method = find_method(self.name)
        inputs = Inputs(folders={"policy": model}, loader=lambda _role, path: load_model(path))
        with pytest.raises(UserError, match=f"{self.name} needs a dataset"):
            method().run(inputs, method.params.model_validate(self.quick), make_context(tmp_path, Log()))


def _rows(results: Path, spec: StageSpec) -> list[dict[str, Any]]:
    return made_rows(Folders(results).artifacts / spec.key)
