"""Steps whose result is for running only: what may follow them, and on which targets their recipes are measured."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field

from harness import _available, checks
from harness._available import PartialSuite, missing_targets
from harness.data import DataSource
from harness.errors import UserError
from harness.measurements import measure_specs
from harness.method import Context, Inputs, Method, Params, Trained
from harness.objectives import kinds_of
from harness.plan import make_plan
from harness.resolve import Facts, Models, Run, chain
from harness.suite import Suite, load_suite


class PackParams(Params):
    """What the toy may have."""

    runtime: Literal["torch", "onnxruntime"] = Field("torch", description="what runs it")


class Pack(Method[PackParams]):
    """A last step: for torch, or for another runtime."""

    name = "pack"
    summary = "a toy"
    paper = "none"
    version = 1
    params = PackParams
    needs = frozenset({"policy"})
    dataset_kind = None
    compresses = True
    fixed: ClassVar[frozenset[str]] = frozenset({"runtime"})

    @classmethod
    def deploys(cls, settings: Mapping[str, object]) -> bool:
        """Always."""
        return True

    @classmethod
    def runs_on(cls, settings: Mapping[str, object]) -> frozenset[str]:
        """As it was packed for."""
        return frozenset({"eager"} if settings["runtime"] == "torch" else {"onnxruntime"})

    def run(self, inputs: Inputs, params: PackParams, context: Context) -> Trained:
        """Never run here."""
        raise NotImplementedError


TORCH = "{name: cpu}, {name: bf16, dtype: bfloat16}, {name: compiled, backend: inductor}"
TARGETS = f"[{TORCH}, {{name: ort, backend: onnxruntime}}]"
RECIPES = """
    plain: [sft: {}]
    packed: [use: plain, PACK: {}]
    ort: [use: plain, PACK: {runtime: onnxruntime}]
"""


def _suite(tmp_path: Path, recipes: str = RECIPES, targets: str = TARGETS, measure: str = "{profile: {}}") -> Suite:
    text = re.sub(r"\bPACK\b", f"'{__name__}:Pack'", recipes)
    lines = "".join(f"  {line.strip()}\n" for line in text.strip().splitlines())
    path = tmp_path / "s.yaml"
    path.write_text(
        f"name: t\nmodels: [m]\nrecipes:\n{lines}targets: {targets}\nmeasure: {measure}\n"
        "budget: {trials_per_cell: 1}\n"
    )
    return load_suite(path)


@pytest.mark.parametrize(
    ("recipes", "place", "words"),
    [
        ("a: [PACK: {}, sft: {}]", ":4:", "no step may follow"),
        ("a: [PACK: {}]\nb: [use: a, sft: {}]", ":5:", "no step may follow"),
        ("a: [PACK: {runtime: {values: [torch, onnxruntime]}}]", ":4:", "give a value, or two recipes"),
        ("a: [PACK: {runtime: onnxruntime}]\nb: [distill: {teacher: a, student_layers: 4}]", ":5:", "is exported"),
    ],
)
def test_what_no_step_may_follow_is_refused_where_it_stands(
    tmp_path: Path, recipes: str, place: str, words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(place)) as refused:
        _suite(tmp_path, recipes)
    assert words in str(refused.value)


def test_a_packed_teacher_that_runs_in_torch_may_teach(tmp_path: Path) -> None:
    recipes = "a: [PACK: {}]\nb: [distill: {teacher: a, student_layers: 4}]\nc: [PACK: {runtime: onnxruntime}]"
    suite = _suite(tmp_path, recipes)
    assert suite.needs("b") == ["a"]


def test_a_recipe_is_measured_on_the_targets_that_run_it(tmp_path: Path) -> None:
    suite = _suite(tmp_path, measure="{profile: {}, tasks: {hellaswag: {}}, every_numerics: true}")
    names = {r: [t.name for t in suite.targets_of(r)] for r in ("base", "plain", "packed", "ort")}
    torch = ["cpu", "bf16", "compiled"]
    assert names == {"base": torch, "plain": torch, "packed": ["cpu", "bf16"], "ort": ["ort"]}
    assert [t.name for t in suite.quality_targets("packed")] == ["cpu", "bf16"]
    assert [t.name for t in suite.quality_targets("ort")] == ["ort"]
    one = _suite(tmp_path, measure="{profile: {}, tasks: {hellaswag: {}}, quality_target: bf16}")
    assert [[t.name for t in one.quality_targets(r)] for r in ("base", "packed", "ort")] == [
        ["bf16"],
        ["bf16"],
        ["ort"],
    ]
    assert one.quality_target.name == "bf16"


def test_each_of_its_targets_gets_a_measurement(tmp_path: Path) -> None:
    suite = _suite(tmp_path)
    specs = measure_specs(_facts(suite), "ort", MODELS, ("final",), kinds_of(["latency_ms"]), "")
    assert [target.name for target, _ in specs] == ["ort"]
    specs = measure_specs(_facts(suite), "packed", MODELS, ("final",), kinds_of(["latency_ms"]), "")
    assert [target.name for target, _ in specs] == ["cpu", "bf16"]


@pytest.mark.parametrize(
    ("targets", "measure", "words"),
    [
        (
            "[{name: cpu}]",
            "{profile: {}}",
            "recipes.ort: no target runs what it leaves: add one of backend onnxruntime",
        ),
        ("[{name: ort, backend: onnxruntime}]", "{profile: {}}", "none runs the untouched base model"),
        (TARGETS, "{profile: {}, quality_target: ort}", "measure.quality_target: ort does not run the untouched base"),
        (TARGETS.replace("]", ", {name: ov, backend: openvino}]"), "{profile: {}}", "no recipe leaves a model that"),
        (TARGETS, "{profile: {}, gold: {}, judge: {model: ort}}", "measure.judge.model: ort is exported"),
    ],
)
def test_targets_and_recipes_must_meet(tmp_path: Path, targets: str, measure: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        _suite(tmp_path, targets=targets, measure=measure)


def test_a_recipe_whose_only_runtime_is_missing_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_available, "target_problem", lambda t: "absent" if t.backend == "onnxruntime" else None)
    monkeypatch.setattr("harness.plan._disk", lambda suite, stages: None)
    suite = _suite(tmp_path)
    partial = PartialSuite.of(suite, missing_targets(suite))
    plan = make_plan(partial, _facts(partial), tmp_path)
    assert [cell.recipe for cell in plan.cells] == ["plain", "packed"]
    assert plan.to_json()["unmeasured"] == ["ort"]
    assert plan.to_json()["skipped"] == {"ort": "absent"}


MODELS = Models(policy="key", artifact="key", reward=None, base="model:m")


def _facts(suite: Suite) -> Facts:
    return Facts(
        suite=suite,
        source=DataSource("bundled"),
        precision="float32",
        models={"m": "key of m"},
        datasets={("instructions", "instructions"): "rows"},
        tasks={},
        gold=None,
        judge=None,
        machine={},
        library_versions={"torch": "1"},
    )


def test_the_versions_that_decide_a_result_are_in_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = _suite(tmp_path)

    def keys() -> tuple[str, ...]:
        facts = _facts(suite)
        stages = [chain(facts, Run(recipe, "m", 0, {}))[-1].key for recipe in ("plain", "packed")]
        kinds = kinds_of(["latency_ms"])
        specs = [measure_specs(facts, recipe, MODELS, ("final",), kinds, "")[0][1].key for recipe in ("plain", "ort")]
        return (*stages, *specs)

    before = keys()
    monkeypatch.setattr(Pack, "libraries", ("posttrain-harness",))
    plain, packed, torch, ort = (a == b for a, b in zip(before, keys(), strict=True))
    assert (plain, packed, torch, ort) == (True, False, True, True)
    monkeypatch.setattr("harness.measurements.versions", lambda names: dict.fromkeys(names, "another"))
    plain, packed, torch, ort = (a == b for a, b in zip(before, keys(), strict=True))
    assert (plain, torch, ort) == (True, True, False)


@pytest.mark.parametrize(
    ("steps", "absent", "words"),
    [
        ("[quantize: {scheme: gptq_w4}]", "llmcompressor", "quantize needs llmcompressor"),
        ("[quantize: {scheme: {values: [int8_dynamic, gptq_w4]}}]", "llmcompressor", "quantize needs llmcompressor"),
        ("[quantize: {scheme: int8_dynamic}]", "llmcompressor", None),
        ("[qat: {}]", "torchao", "qat needs torchao"),
        ("[prune_weights: {criterion: magnitude}]", "llmcompressor", None),
        ("[export: {format: onnx}]", "onnxscript", "export needs onnxscript: pip install 'posttrain-harness[export]'"),
    ],
)
def test_a_missing_library_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str, absent: str, words: str | None
) -> None:
    suite = _suite(tmp_path, f"a: {steps}\nort: [PACK: {{runtime: onnxruntime}}]")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else found(name))
    said = "\n".join(checks._import_problems(suite, "s.yaml"))
    assert said == "" if words is None else f"s.yaml: recipes.a: {words}" in said
