"""What every method that trains must do. Subclass `MethodContract` for each, with settings for a quick run.

Methods that sample as they learn and are rewarded for it (PPO, GRPO, RLOO, …) subclass `OnlineContract`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch

from harness import method as method_module
from harness.errors import PrunedError, UserError
from harness.execute._spec import StageSpec
from harness.execute._stage import run_stage
from harness.folders import Folders
from harness.method import Context, Inputs, LoadedModel, find_method
from harness.models import load_model
from harness.plan import gather_facts
from harness.resolve import Facts, Run, chain
from harness.store import Store
from harness.suite import load_suite
from tests.methods.helpers import WORDS, Log, instructions, preferences, turn, weights

__all__ = ["MethodContract", "OnlineContract"]

ROWS: Mapping[str, Sequence[Mapping[str, object]]] = {
    "instructions": list(instructions(40, 1)),
    "preferences": list(preferences(40, 1)),
    "prompts": [{"prompt": [turn("user", f"say {WORDS[n % len(WORDS)]} {n}")]} for n in range(40)],
    "text": [{"text": f"{word} and {word}"} for word in WORDS],
}
WRONG = {"instructions": "preferences", "preferences": "instructions", "prompts": "text", "text": "prompts"}
"""Kind → another, whose columns do not make it."""

SUITE = """
name: contract
models: [{model}]
data: {data}
recipes: {recipes}
measure: {{profile: {{}}}}
seeds: [0, 1]
budget: {{trials_per_cell: 1}}
"""


class MethodContract:
    """Runs from a recipe, repeats, keeps its deadline, logs, leaves a model that loads, refuses the wrong dataset."""

    name: ClassVar[str]
    quick: ClassVar[Mapping[str, object]] = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    lora: ClassVar[Mapping[str, object] | None] = {"lora_rank": 4, "learning_rate": 1e-2}
    """What turns `quick` into a run with adapters; None: the method has none."""
    logged: ClassVar[frozenset[str]]
    """What it logs at every step, beside `always`."""
    always: ClassVar[frozenset[str]] = frozenset({"loss", "grad_norm", "learning_rate"})
    counts: ClassVar[tuple[str, str]] = ("steps", "train_tokens")
    """The setting, and stored figure, of how many steps there are, and the figure of the tokens seen."""
    before: ClassVar[Sequence[Mapping[str, Mapping[str, object]]]] = ()
    """The steps that stand before it in its recipe, such as a reward model's."""
    others: ClassVar[Mapping[str, Sequence[Mapping[str, Mapping[str, object]]]]] = {}
    """Further recipes, which its settings name."""
    head: ClassVar[Literal["causal", "reward"]] = "causal"
    """What its artifact is loaded as."""

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
        _run(_stages(facts, "plain"), results, log)
        if self.lora is not None:
            _run(_stages(facts, "adapters"), results)
        return results, log

    @property
    def _kind(self) -> str:
        return str(find_method(self.name).dataset_kind)

    def _suite(self, model: Path, data: Path, folder: Path, **changes: object) -> Path:
        settings = {**self.quick, "dataset": f"some/{self._kind}", **changes}
        recipes = {**self.others, "plain": [*self.before, {self.name: settings}]}
        if self.lora is not None:
            recipes["adapters"] = [*self.before, {self.name: {**settings, **self.lora}}]
        path = folder / "contract.yaml"
        path.write_text(SUITE.format(model=model, data=data, recipes=json.dumps(recipes)))
        return path

    def _load(self, folder: Path) -> LoadedModel:
        return load_model(folder, head=self.head)

    @pytest.mark.parametrize("recipe", ["plain", "adapters"])
    def test_a_recipe_leaves_a_trained_model_that_loads(
        self, facts: Facts, ran: tuple[Path, Log], tiny_model: Path, data: Path, tmp_path: Path, recipe: str
    ) -> None:
        if recipe == "adapters" and self.lora is None:
            with pytest.raises(UserError, match="lora_rank"):
                load_suite(self._suite(tiny_model, data, tmp_path, lora_rank=4))
            return
        folder = _artifact(ran[0], _stages(facts, recipe))
        # A causal model that is loaded as a reward model has a head of zeros.
        before, after = self._load(tiny_model), self._load(folder)
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
        recipe = "plain" if self.lora is None else "adapters"
        found = []
        for seed in (0, 1):
            stages = _stages(facts, recipe, seed)
            _run(stages, tmp_path)
            found.append(self._weights(tmp_path, stages))
        first = self._weights(ran[0], _stages(facts, recipe))
        assert _equal(first, found[0])
        assert not _equal(first, found[1])

    def test_every_step_is_logged_and_stored(self, facts: Facts, ran: tuple[Path, Log]) -> None:
        results, log = ran
        counted, tokens = self.counts
        steps = int(str(self.quick[counted]))
        assert [(step, total) for step, total, _ in log.steps] == [(n + 1, steps) for n in range(steps)]
        names = self.logged | self.always
        assert all(set(metrics) == names for _, _, metrics in log.steps)
        store = Store(results)
        store.ingest()
        key = _stages(facts, "plain")[-1].key
        with store.reading():
            curves = "SELECT metric, count(*) FROM raw.training_steps WHERE stage = ? GROUP BY ALL"
            assert {(name, steps) for name in names} <= set(store.query(curves, [key]).rows())
            ((stored,),) = store.query("SELECT metrics FROM stages WHERE stage = ?", [key]).rows()
        assert json.loads(stored)[counted] == steps
        assert json.loads(stored)[tokens] > 0

    def test_stops_at_its_deadline_leaves_nothing_and_comes_out_the_same_later(
        self, facts: Facts, ran: tuple[Path, Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        *before, spec = _stages(facts, "plain")
        _run(before, tmp_path)
        log = Log()

        def late(step: int, total: int, metrics: Mapping[str, float]) -> None:
            log(step, total, metrics)
            monkeypatch.setattr(method_module, "time", SimpleNamespace(monotonic=lambda: math.inf))

        with pytest.raises(PrunedError, match="deadline"):
            run_stage(spec.model_copy(update={"limit_s": 1e6}), tmp_path, late)
        assert len(log.steps) == 1
        assert not _artifact(tmp_path, [spec]).exists()
        assert list((tmp_path / "scratch").iterdir()) == []
        monkeypatch.undo()
        # What stood before it is found, and computed no second time.
        kept = [_artifact(tmp_path, [stage]).stat() for stage in before]
        _run([*before, spec], tmp_path)
        assert [_artifact(tmp_path, [stage]).stat() for stage in before] == kept
        assert _equal(self._weights(ran[0], [spec]), self._weights(tmp_path, [spec]))

    def test_another_kind_of_dataset_is_refused_before_anything_runs(
        self, tiny_model: Path, data: Path, tmp_path: Path
    ) -> None:
        other = WRONG[self._kind]
        suite = load_suite(self._suite(tiny_model, data, tmp_path, dataset=f"some/{other}"))
        with pytest.raises(UserError, match=rf"some/{other}.*do not make {self._kind}; expected "):
            gather_facts(suite)

    def test_no_dataset_is_refused(self, facts: Facts, ran: tuple[Path, Log], tmp_path: Path) -> None:
        spec = _stages(facts, "plain")[-1]
        method = find_method(self.name)
        inputs = Inputs(
            folders={role: Folders(ran[0]).model(reference) for role, reference in spec.inputs.items()},  # type: ignore[misc]  # roles are texts in a spec
            loader=lambda role, path: load_model(path, head="reward" if role == "reward" else "causal"),
        )
        context = Context(seed=0, scratch=tmp_path, precision="float32", log=Log())
        with pytest.raises(UserError, match=f"{self.name} needs a dataset"):
            method().run(inputs, method.params.model_validate(spec.params), context)

    def _weights(self, results: Path, stages: Sequence[StageSpec]) -> dict[str, Any]:
        return weights(self._load(_artifact(results, stages)).model)


class OnlineContract(MethodContract):
    """Of a method that answers prompts and learns from a reward: the reward model that its recipe trains."""

    quick: ClassVar = {
        "iterations": 2,
        "rollout_batch_size": 8,
        "minibatch_size": 4,
        "max_new_tokens": 6,
        "learning_rate": 1e-3,
    }
    always: ClassVar = frozenset({"reward", "kl", "entropy", "length", "eos_fraction", "grad_norm", "learning_rate"})
    counts = ("iterations", "sampled_tokens")
    before: ClassVar = (
        {
            "reward_model": {
                "dataset": "some/preferences",
                "steps": 3,
                "batch_size": 4,
                "learning_rate": 1e-3,
                "held_out_pairs": 4,
            }
        },
    )


def _stages(facts: Facts, recipe: str, seed: int = 0) -> list[StageSpec]:
    """The stages of a recipe, the method's own last."""
    return chain(facts, Run(recipe, facts.suite.models[0], seed, {}))


def _run(stages: Sequence[StageSpec], results: Path, log: Log | None = None) -> None:
    """Run those that have not left their artifact here; `log` is told of the last."""
    for spec in stages:
        if not _artifact(results, [spec]).exists():
            run_stage(spec, results, log if log is not None and spec is stages[-1] else Log())


def _artifact(results: Path, stages: Sequence[StageSpec]) -> Path:
    """The folder that the last of these stages leaves."""
    return Folders(results).artifacts / stages[-1].key


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
