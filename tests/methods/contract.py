"""What every method that trains a policy must do. Subclass `MethodContract` for each, with settings for a quick run."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from harness.errors import PrunedError, UserError
from harness.execute._spec import StageSpec
from harness.execute._stage import run_stage
from harness.folders import Folders
from harness.method import Context, find_method
from harness.models import load_model
from harness.plan import gather_facts
from harness.resolve import Facts, Run, chain
from harness.store import Store
from harness.suite import load_suite
from tests.methods.helpers import Log, instructions, make_inputs, preferences, weights

__all__ = ["MethodContract"]

ROWS = {"instructions": instructions(40, 1), "preferences": preferences(40, 1)}

SUITE = """
name: contract
models: [{model}]
data: {data}
recipes:
  plain: [{method}: {plain}]
  adapters: [{method}: {adapters}]
measure: {{profile: {{}}}}
seeds: [0, 1]
budget: {{trials_per_cell: 1}}
"""


class MethodContract:
    """Runs from a recipe, repeats, keeps its deadline, logs, leaves a model that loads, refuses the wrong dataset."""

    name: ClassVar[str]
    quick: ClassVar[Mapping[str, object]] = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    logged: ClassVar[frozenset[str]]
    """What it logs at every step, beside loss, grad_norm and learning_rate."""

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder with a small set of each kind."""
        folder = tmp_path_factory.mktemp("data")
        for kind, rows in ROWS.items():
            (folder / "some" / kind).mkdir(parents=True)
            (folder / "some" / kind / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    @pytest.fixture(scope="class")
    def facts(self, tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
        """The suite of a recipe in full and one by adapters, and what a plan finds out about it."""
        return gather_facts(load_suite(self._suite(tiny_model, data, tmp_path_factory.mktemp("suite"))))

    @pytest.fixture(scope="class")
    def ran(self, facts: Facts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log]:
        """Both recipes, run with seed 0: the results folder, and what the first logged."""
        results, log = tmp_path_factory.mktemp("results"), Log()
        run_stage(self._stage(facts, "plain"), results, log)
        run_stage(self._stage(facts, "adapters"), results, Log())
        return results, log

    @property
    def _kind(self) -> str:
        return str(find_method(self.name).dataset_kind)

    def _suite(self, model: Path, data: Path, folder: Path, kind: str | None = None) -> Path:
        settings = {**self.quick, "dataset": f"some/{kind or self._kind}"}
        path = folder / "contract.yaml"
        path.write_text(
            SUITE.format(
                model=model,
                data=data,
                method=self.name,
                plain=json.dumps(settings),
                adapters=json.dumps({**settings, "lora_rank": 4, "learning_rate": 1e-2}),
            )
        )
        return path

    def _stage(self, facts: Facts, recipe: str, seed: int = 0) -> StageSpec:
        (spec,) = chain(facts, Run(recipe, facts.suite.models[0], seed, {}))
        return spec

    def _train(self, model: Path, dataset: Any, context: Context) -> None:
        method = find_method(self.name)
        method().run(make_inputs(model, dataset), method.params.model_validate(self.quick), context)

    @pytest.mark.parametrize("recipe", ["plain", "adapters"])
    def test_a_recipe_leaves_a_trained_model_that_loads(
        self, facts: Facts, ran: tuple[Path, Log], tiny_model: Path, recipe: str
    ) -> None:
        folder = Folders(ran[0]).artifacts / self._stage(facts, recipe).key
        before, after = load_model(tiny_model), load_model(folder)
        assert type(after.model) is type(before.model)
        assert not list(folder.rglob("*.bin")) + list(folder.rglob("adapter*"))
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            old, new = before.model(input_ids=ids).logits, after.model(input_ids=ids).logits
        assert torch.isfinite(new).all()
        assert (old - new).abs().max() > 1e-3
        assert after.model.config.use_cache
        assert before.tokenizer.chat_template == after.tokenizer.chat_template

    def test_another_seed_gives_other_weights_and_the_same_seed_the_same(
        self, facts: Facts, ran: tuple[Path, Log], tmp_path: Path
    ) -> None:
        spec, other = self._stage(facts, "adapters"), self._stage(facts, "adapters", 1)
        for stage in (spec, other):
            run_stage(stage, tmp_path, Log())
        first = _weights(ran[0], spec)
        assert _equal(first, _weights(tmp_path, spec))
        assert not _equal(first, _weights(tmp_path, other))

    def test_every_step_is_logged_and_stored(self, facts: Facts, ran: tuple[Path, Log]) -> None:
        results, log = ran
        steps = int(str(self.quick["steps"]))
        assert [(step, total) for step, total, _ in log.steps] == [(n + 1, steps) for n in range(steps)]
        names = self.logged | {"loss", "grad_norm", "learning_rate"}
        assert all(set(metrics) == names for _, _, metrics in log.steps)
        store = Store(results)
        store.ingest()
        key = self._stage(facts, "plain").key
        rows = store.query(f"SELECT metric, count(*) FROM raw.training_steps WHERE stage = '{key}' GROUP BY ALL").rows()
        assert {(name, steps) for name in names} <= set(rows)
        ((stored,),) = store.query(f"SELECT metrics FROM stages WHERE stage = '{key}'").rows()
        assert json.loads(stored)["steps"] == steps
        assert json.loads(stored)["train_tokens"] > 0

    def test_stops_at_its_deadline(self, tiny_model: Path, tmp_path: Path) -> None:
        log = Log()
        context = Context(seed=0, scratch=tmp_path, precision="float32", log=log)

        def late(step: int, total: int, metrics: Mapping[str, float]) -> None:
            log(step, total, metrics)
            context.deadline = time.monotonic() - 1

        context.log = late
        with pytest.raises(PrunedError, match="deadline"):
            self._train(tiny_model, ROWS[self._kind], context)
        assert len(log.steps) == 1

    def test_what_was_cut_short_leaves_nothing_and_comes_out_the_same_later(
        self, facts: Facts, ran: tuple[Path, Log], tmp_path: Path
    ) -> None:
        spec = self._stage(facts, "plain")
        with pytest.raises(PrunedError, match="deadline"):
            run_stage(spec.model_copy(update={"limit_s": 0.0}), tmp_path, Log())
        assert not (Folders(tmp_path).artifacts / spec.key).exists()
        run_stage(spec, tmp_path, Log())
        assert _equal(_weights(ran[0], spec), _weights(tmp_path, spec))

    def test_another_kind_of_dataset_is_refused_before_anything_runs(
        self, tiny_model: Path, data: Path, tmp_path: Path
    ) -> None:
        (other,) = ROWS.keys() - {self._kind}
        suite = load_suite(self._suite(tiny_model, data, tmp_path, other))
        with pytest.raises(UserError, match=rf"some/{other}.*do not make {self._kind}; expected "):
            gather_facts(suite)

    def test_no_dataset_is_refused(self, tiny_model: Path, tmp_path: Path) -> None:
        context = Context(seed=0, scratch=tmp_path, precision="float32", log=Log())
        with pytest.raises(UserError, match=f"{self.name} needs a dataset"):
            self._train(tiny_model, None, context)


def _weights(results: Path, spec: StageSpec) -> dict[str, Any]:
    return weights(load_model(Folders(results).artifacts / spec.key).model)


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
