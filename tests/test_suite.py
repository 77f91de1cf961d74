"""The suite: what is accepted, what is refused and where the error points, search spaces, identity, JSON Schema."""

import json
import pkgutil
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

import methods
from harness.errors import UserError
from harness.method import Context, Inputs, Method, Params, Role, Trained, tunable
from harness.suite import Space, Suite, load_suite, schema_text, suite_json_schema

ROOT = Path(__file__).parent.parent
SUITES = sorted((ROOT / "suites").glob("*.yaml"))


class ToyParams(Params):
    """One field of each shape."""

    rate: float = Field(0.1, gt=0, le=1, description="a rate", json_schema_extra=tunable(1e-3, 1e-1, log=True))
    steps: int = Field(10, ge=1, le=100, description="steps", json_schema_extra=tunable(5, 50))
    kind: Literal["a", "b"] = Field("a", description="a kind")
    dataset: str = Field("prompts", description="a dataset")
    cap: float | None = Field(None, ge=0, description="a cap")


class Toy(Method[ToyParams]):
    """A method that needs the policy only."""

    name = "toy"
    summary = "a toy"
    paper = "none"
    version = 1
    params = ToyParams
    needs = frozenset({"policy"})
    dataset_kind = "prompts"

    def run(self, inputs: Inputs, params: ToyParams, context: Context) -> Trained:
        """Never run here."""
        raise NotImplementedError


class ToyReward(Toy):
    """A method that makes a reward model."""

    name = "toy_reward"
    produces = "reward"


class ToyRL(Toy):
    """A method that needs a reward model."""

    name = "toy_rl"
    needs: ClassVar[frozenset[Role]] = frozenset({"policy", "reward"})


class Unnamed(Method[ToyParams]):
    """A method that declares nothing."""

    def run(self, inputs: Inputs, params: ToyParams, context: Context) -> Trained:
        """Never run here."""
        raise NotImplementedError


TOY, REWARD, RL = f"{__name__}:Toy", f"{__name__}:ToyReward", f"{__name__}:ToyRL"


def _yaml(recipes: str = "a: [{TOY: {}}]", rest: str = "", measure: str = "{gold: {}}") -> str:
    recipes = re.sub(r"\b(TOY|REWARD|RL)\b", lambda m: f"'{globals()[m.group()]}'", recipes)
    return f"name: t\nmodels: [m]\nrecipes: {{{recipes}}}\nmeasure: {measure}\nbudget: {{trials_per_cell: 2}}\n{rest}"


def _load(tmp_path: Path, text: str, *overrides: str) -> Suite:
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return load_suite(path, overrides)


def _error(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        _load(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path) + "/", "")


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_shipped_suites_are_valid(path: Path) -> None:
    suite = load_suite(path)
    assert suite.name == path.stem
    assert suite.question.endswith("?")
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=../harness/suite.schema.json\n")


def test_there_are_suites() -> None:
    assert {"dpo_vs_ppo", "sft_learning_rate", "compression", "edge_runtimes"} <= {p.stem for p in SUITES}
    # What trains is tuned; what compresses stands as the literature has it, so that it ends within an hour.
    for name in ("dpo_vs_ppo", "sft_learning_rate"):
        suite = load_suite(ROOT / "suites" / f"{name}.yaml")
        assert any(suite.search_space(recipe) for recipe in suite.recipe_order())


def test_importing_and_loading_imports_no_heavy_library() -> None:
    code = (
        "import sys; from harness.suite import load_suite; load_suite('suites/dpo_vs_ppo.yaml');"
        "print([m for m in ('torch', 'transformers', 'optuna', 'polars', 'datasets', 'trl') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_defaults(tmp_path: Path) -> None:
    suite = _load(tmp_path, _yaml())
    assert [t.name for t in suite.targets] == ["cpu-fp32"]
    assert suite.targets[0].dtype == "float32"
    assert (suite.data, suite.sampler, suite.scorer, suite.precision) == ("bundled", "tpe", "prefix-tree", "auto")
    assert suite.seeds == [0]
    assert suite.objectives == {"gold_reward": "maximize"}
    assert suite.quality_target.name == "cpu-fp32"
    assert suite.source == tmp_path / "s.yaml"
    assert suite.text == _yaml()


@pytest.mark.parametrize(
    ("measure", "objectives"),
    [
        ("{tasks: {mmlu: {}}}", {"score": "maximize"}),
        ("{tasks: {mmlu: {}}, gold: {}}", {"gold_reward": "maximize"}),
        ("{judge: {}}", {"helpfulness": "maximize"}),
        ("{judge: {helpfulness: false}}", {"harmlessness": "maximize"}),
        ("{profile: {}}", {"latency_ms": "minimize"}),
    ],
)
def test_default_objectives_follow_the_measures(tmp_path: Path, measure: str, objectives: dict[str, str]) -> None:
    assert _load(tmp_path, _yaml(measure=measure)).objectives == objectives


def test_settings_become_typed_values_and_spaces(tmp_path: Path) -> None:
    recipe = (
        "a: [{TOY: {rate: {min: 1e-3, max: 1, log: true}, steps: {min: 10, max: 50, step: 20},"
        " kind: {values: [b, a]}, cap: {values: [1, 2.5, null]}}}, {TOY: {rate: search, steps: search, cap: 3}}]"
    )
    suite = _load(tmp_path, _yaml(recipe))
    assert suite.search_space("a") == {
        "toy.rate": Space(low=0.001, high=1.0, log=True),
        "toy.steps": Space(low=10, high=50, step=20, integer=True),
        "toy.kind": Space(values=("b", "a")),
        "toy.cap": Space(values=(1.0, 2.5, None)),
        "toy_2.rate": Space(low=0.001, high=0.1, log=True),
        "toy_2.steps": Space(low=5, high=50, integer=True),
    }
    first, second = suite.steps("a")
    assert isinstance(suite.search_space("a")["toy.cap"].values[0], float)
    assert first.settings == {"dataset": "prompts"}
    assert second.settings == {"kind": "a", "dataset": "prompts", "cap": 3.0}
    assert isinstance(second.settings["cap"], float)


def test_a_step_resolves_with_chosen_values(tmp_path: Path) -> None:
    (step,) = _load(tmp_path, _yaml("a: [{TOY: {rate: search, steps: 3}}]")).steps("a")
    assert step.resolve({"toy.rate": 0.5, "other.rate": 1}) == ToyParams(rate=0.5, steps=3)
    with pytest.raises(UserError, match=r"recipe 'a': no value for toy\.rate"):
        step.resolve({})
    with pytest.raises(UserError, match=r"recipe 'a', step toy: rate: expected less than or equal to 1, got 2\.0"):
        step.resolve({"toy.rate": 2.0})


def test_use_puts_the_other_recipes_steps_first_without_their_spaces(tmp_path: Path) -> None:
    recipes = (
        "c: [{use: b}, {RL: {rate: search}}], b: [{use: a}, {REWARD: {steps: search}}], a: [{TOY: {rate: search}}]"
    )
    suite = _load(tmp_path, _yaml(recipes))
    assert [(s.recipe, s.name) for s in suite.steps("c")] == [("a", "toy"), ("b", "toy_reward"), ("c", "toy_rl")]
    assert list(suite.search_space("c")) == ["toy_rl.rate"]
    assert suite.recipe_order() == ["a", "b", "c"]
    assert (suite.uses("c"), suite.uses("a")) == ("b", None)
    assert suite.steps("base") == []
    with pytest.raises(UserError, match=r"no recipe 'd'; expected one of a, b, c"):
        suite.steps("d")


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        ("a: []", "s.yaml:3:14: recipes.a: expected a list of steps, got []"),
        ("a: {TOY: {}}", "recipes.a: expected a list of steps"),
        ("a: [TOY]", "recipes.a.0: a step is one method with its settings, or use: recipe"),
        ("a: [{TOY: {}, RL: {}}]", "a step is one method"),
        ("a: [{TOY: null}]", "expected a mapping of settings ({} for the defaults), got null"),
        ("a: [{tyo: {}}]", "s.yaml:3:16: recipes.a.0.tyo: unknown method"),
        ("a: [{sfft: {}}]", "unknown method (did you mean sft?)"),
        ("a: [{'no.such:X': {}}]", "cannot load the method 'no.such:X'"),
        ("a: [{':X': {}}]", "unknown method"),
        (f"a: [{{'{__name__}:Unnamed': {{}}}}]", "this method declares no name, version, params, needs"),
        (f"a: [{{'{__name__}:ToyParams': {{}}}}]", "is not a harness.method.Method"),
        ("a b: [{TOY: {}}]", "recipes.a b: expected a name of letters"),
        ("'../x': [{TOY: {}}]", "expected a name of letters"),
        ("'': [{TOY: {}}]", "expected a name of letters"),
        ("'<b>': [{TOY: {}}]", "expected a name of letters"),
        ("base: [{TOY: {}}]", "the name base is taken"),
        ("a: [{use: a}, {TOY: {}}]", "a recipe cannot use itself"),
        ("a: [{use: base}, {TOY: {}}]", "leave use: base out"),
        ("sft: [{TOY: {}}], a: [{use: stf}, {TOY: {}}]", 'no recipe "stf" (did you mean sft?)'),
        ("a: [{use: [b]}, {TOY: {}}]", "a.0.use: no recipe"),
        ("b: [{TOY: {}}], a: [{use: b}]", "recipes.a: has no step of its own"),
        ("b: [{TOY: {}}], a: [{TOY: {}}, {use: b}]", "use stands first"),
        ("a: [{use: b}, {TOY: {}}], b: [{use: a}, {TOY: {}}]", "in a circle: a → b → a"),
        ("c: [{use: a}, {TOY: {}}], a: [{use: b}, {TOY: {}}], b: [{use: a}, {TOY: {}}]", "in a circle: a → b → a"),
        ("a: [{RL: {}}]", "needs a reward model: put a step that makes one (reward_model) before it"),
        ("a: [{RL: {}}, {REWARD: {}}]", "needs a reward model"),
        ("a: [{TOY: {}}], b: [{use: a}, {RL: {}}], c: [{REWARD: {}}]", "recipes.b.1"),
    ],
)
def test_recipes_that_cannot_be(tmp_path: Path, recipes: str, expected: str) -> None:
    assert expected in _error(tmp_path, _yaml(recipes))


def test_a_used_recipes_reward_model_counts(tmp_path: Path) -> None:
    _load(tmp_path, _yaml("rm: [{REWARD: {}}], a: [{use: rm}, {TOY: {}}, {RL: {}}]"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("rat: 0.1", ".rat: unknown setting of toy (did you mean rate?)"),
        ("rate: '0.1'", '.rate: expected a number, got "0.1"'),
        ("rate: 0", ".rate: expected greater than 0, got 0"),
        ("steps: 1.0", ".steps: expected a whole number, got 1.0"),
        ("steps: true", ".steps: expected a whole number, got true"),
        ("steps: serach", "(did you mean search?)"),
        ("steps: [1]", ".steps: expected a whole number, got [1]"),
        ("kind: c", ".kind: expected 'a' or 'b', got \"c\""),
        ("kind: search", "toy names no default range for kind; these have: rate, steps"),
        ("kind: {min: 0, max: 1}", "kind is no number, so it has no range"),
        ("rate: {}", "expected {values: [...]} or {min, max, log}; min and max missing"),
        ("rate: {min: 0.1}", "max missing"),
        ("rate: {min: 0.1, max: 0.5, lgo: true}", ".rate.lgo: unknown key of a search space (did you mean log?)"),
        ("rate: {min: 0.5, max: 0.1}", "expected min < max, got 0.5 and 0.1"),
        ("rate: {min: 0.5, max: 0.5}", "expected min < max"),
        ("rate: {min: 0, max: 0.1, log: true}", ".rate.min: expected min > 0 where log is true, got 0"),
        ("rate: {min: 0.1, max: 2}", ".rate.max: expected less than or equal to 1, got 2.0"),
        ("rate: {min: -1, max: 0.5}", ".rate.min: expected greater than 0, got -1.0"),
        ("rate: {min: low, max: 0.5}", '.rate.min: expected a number, got "low"'),
        ("rate: {min: true, max: 0.5}", ".rate.min: expected a number, got true"),
        ("rate: {min: 0.1, max: 0.5, log: 1}", ".rate.log: expected true or false, got 1"),
        ("rate: {min: 0.1, max: 0.5, log: true, step: 0.1}", "a logarithmic range has no step"),
        ("rate: {min: 0.1, max: 0.5, step: 0}", ".rate.step: expected a step above 0 and at most max - min"),
        ("steps: {min: 1, max: 9, step: 0.5}", ".steps.step: expected a whole number, got 0.5"),
        ("steps: {min: 1.5, max: 9}", ".steps.min: expected a whole number, got 1.5"),
        ("rate: {values: []}", ".rate.values: expected a list of values, got []"),
        ("rate: {values: 3}", ".rate.values: expected a list of values, got 3"),
        ("rate: {values: [0.1, 0.1]}", "the same value stands here twice"),
        ("rate: {values: [[0.1]]}", "expected plain values"),
        ("rate: {values: [0.1], log: true}", "give values, or min and max, not both"),
        ("rate: {values: [0.1, 3, 0.2, 0]}", ".rate.values.1: expected less than or equal to 1, got 3"),
        ("rate: {values: [0.1, 3, 0.2, 0]}", ".rate.values.3: expected greater than 0, got 0"),
        ("kind: {values: [a, x]}", ".kind.values.1: expected 'a' or 'b', got \"x\""),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, given: str, expected: str) -> None:
    assert expected in _error(tmp_path, _yaml(f"a: [{{TOY: {{{given}}}}}]"))


@pytest.mark.parametrize(
    ("rest", "measure", "expected"),
    [
        ("modles: [x]", "{gold: {}}", "s.yaml:6:1: modles: unknown key (did you mean models?)"),
        ("question: 3", "{gold: {}}", "s.yaml:6:11: question: expected a string, got 3"),
        ("seeds: [0, 1, 0]", "{gold: {}}", "s.yaml:6:15: seeds.2: 0 stands here twice"),
        ("seeds: []", "{gold: {}}", "seeds: "),
        ("seeds: [-1]", "{gold: {}}", "seeds.0: expected greater than or equal to 0"),
        ("sampler: tpee", "{gold: {}}", "(did you mean tpe?)"),
        ("sampler: nsga2", "{gold: {}}", "sampler: nsga2 is not a pure function of the history"),
        ("workers: 0", "{gold: {}}", "workers: expected greater than or equal to 1"),
        ("precision: fp16", "{gold: {}}", "precision: expected 'auto', 'float32' or 'bfloat16'"),
        ("targets: [{name: a}, {name: a}]", "{gold: {}}", 'targets.1: "a" stands here twice'),
        ("targets: [{name: a/b}]", "{gold: {}}", "targets.0.name: expected a name of letters"),
        ("targets: [{name: a, dtyp: x}]", "{gold: {}}", "targets.0.dtyp: unknown key (did you mean dtype?)"),
        ("targets: [{name: a, device: tpu}]", "{gold: {}}", "targets.0.device: "),
        ("", "{}", "measure: nothing is measured; give at least one of tasks, gold, judge, profile"),
        ("", "{tasks: {}}", "nothing is measured"),
        ("", "{tasks: {'a b': {}}}", "measure.tasks.a b: expected a name"),
        ("", "{tasks: {mmlu: {limt: 3}}}", "measure.tasks.mmlu.limt: unknown key (did you mean limit?)"),
        ("", "{tasks: {mmlu: {limit: 0}}}", "measure.tasks.mmlu.limit: expected greater than or equal to 1"),
        ("", "{tasks: {mmlu: }}", "measure.tasks.mmlu: expected a mapping, got null"),
        ("", "{gold: {temperature: -1}}", "measure.gold.temperature: expected greater than or equal to 0"),
        ("", "{judge: {model: aa}}", 'measure.judge.model: no recipe or model "aa"'),
        ("", "{judge: {helpfulness: false, harmlessness: false}}", "measure.judge: nothing is judged"),
        ("", "{judge: {model: a}}", "a recipe that is itself tuned cannot judge"),
        ("", "{profile: {batch_sizes: [1, 1]}}", "the same batch size stands here twice"),
        ("", "{profile: {}, noise_floor: true}", "measure.noise_floor: only quality is measured a second time"),
        ("", "{gold: {}, quality_target: x}", 'measure.quality_target: no target "x"; expected cpu-fp32'),
        ("objectives: {}", "{gold: {}}", "objectives: "),
        ("objectives: {score: maximize}", "{gold: {}}", "objectives.score: score needs measure.tasks"),
        ("objectives: {kl: minimise}", "{gold: {}}", "(did you mean minimize?)"),
        ("objectives: {gold_rewrad: maximize}", "{gold: {}}", "unknown objective (did you mean gold_reward?)"),
        ("objectives: {mmul.acc: maximize}", "{tasks: {mmlu: {}}}", "no task mmul is measured (did you mean mmlu?)"),
        ("objectives: {latency_ms: minimize}", "{gold: {}}", "latency_ms needs measure.profile"),
        ("objectives: {helpfulness: maximize}", "{gold: {}}", "helpfulness needs measure.judge"),
        ("objectives: {rm_reward: maximize}", "{gold: {}}", "every recipe needs a reward model for this"),
        ("constraints: {kl: {}}", "{gold: {}}", "constraints.kl: expected one of {min: x} and {max: x}"),
        ("constraints: {kl: {min: 1, max: 2}}", "{gold: {}}", "expected one of {min: x} and {max: x}"),
        ("constraints: {kl: {max: .inf}}", "{gold: {}}", "the number .inf is out of range"),
    ],
)
def test_suites_that_cannot_be(tmp_path: Path, rest: str, measure: str, expected: str) -> None:
    assert expected in _error(tmp_path, _yaml(rest=rest, measure=measure))


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "name: a b\nmodels: [m]\nmodels: [n]\nrecipes:\n"
        f"  a: [{{'{TOY}': {{rat: 1, steps: {{min: 0, max: 200}}}}}}]\n"
        "measure: {gold: {limit: no}}\nbudget: {trials: 3}\nseeds: [1, x]\n"
    )
    lines = _error(tmp_path, text).splitlines()
    places = [tuple(int(n) for n in re.match(r"s\.yaml:(\d+):(\d+): ", line).groups()) for line in lines]
    assert places == sorted(places)
    assert [line for line, _ in places] == [1, 3, 5, 5, 5, 6, 7, 7, 8]
    assert "name: expected a name" in lines[0]
    assert "duplicate key 'models', first given in line 2" in lines[1]
    assert "(did you mean rate?)" in lines[2]
    assert "steps.min: expected greater than or equal to 1, got 0" in lines[3]
    assert "steps.max: expected less than or equal to 100, got 200" in lines[4]
    assert 'measure.gold.limit: expected a whole number, got "no"' in lines[5]
    assert "budget: the key trials_per_cell is required" in lines[6]
    assert "budget.trials: unknown key (did you mean trials_per_cell?)" in lines[7]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "s.yaml:1:1: the file is empty; expected the keys name, models, recipes, measure, budget"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n", "s.yaml:1:1: expected a mapping with the keys"),
        (b"null", "the file is empty"),
        (b"name: \xff", "s.yaml:1:7: byte 0xff is not UTF-8"),
        (b"name: [", "not valid YAML"),
        (b"recipes: 3", "recipes: expected a mapping, got 3"),
        (b"recipes: {}", "the key name is required"),
    ],
)
def test_files_that_are_no_suite(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_suite(tmp_path / "s.yaml")
    assert expected in str(caught.value)


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder"):
        load_suite(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_suite(tmp_path / "none.yaml")


def test_billion_laughs_are_refused_quickly(tmp_path: Path) -> None:
    laughs = "x0: &x0 [a]\n" + "".join(f"x{i + 1}: &x{i + 1} [{','.join([f'*x{i}'] * 9)}]\n" for i in range(20))
    before = time.process_time()
    assert "unfolds to more than 10,000 values" in _error(tmp_path, laughs + _yaml())
    assert time.process_time() - before < 2


def test_overrides(tmp_path: Path) -> None:
    text = _yaml("a: [{TOY: {rate: search}}], a.b: [{use: a}, {TOY: {}}]", measure="{tasks: {mmlu: {limit: 5}}}")
    suite = _load(
        tmp_path, text, "budget.trials_per_cell=7", f"recipes.a.0.{TOY}.rate=1e-2", f"recipes.a.b.1.{TOY}.steps=4",
        "measure.tasks.mmlu.limit=10", "measure.gold.limit=null", "data=hub", "seeds=[3, 4]", "seeds.1=9",
        "targets=[{name: x}]", "question='a=b: c?'",
    )  # fmt: skip
    assert suite.budget.trials_per_cell == 7
    assert suite.search_space("a") == {}
    assert suite.steps("a")[0].settings["rate"] == 0.01
    assert suite.steps("a.b")[1].settings["steps"] == 4
    assert suite.measure.tasks["mmlu"].limit == 10
    assert suite.measure.gold is not None
    assert suite.measure.gold.limit is None
    assert (suite.data, suite.seeds, suite.targets[0].name) == ("hub", [3, 9], "x")
    assert suite.text == text
    assert suite.overrides[0] == "budget.trials_per_cell=7"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budget.trials=1", "--set budget.trials=1: budget.trials: unknown key (did you mean trials_per_cell?)"),
        ("budgte.batch=1", "--set budgte.batch=1: budgte: unknown key (did you mean budget?)"),
        ("recipes.b.0.x=1", "recipes.b: no b here; expected a"),
        (f"recipes.a.0.{TOY}.rat=1", "unknown setting of toy (did you mean rate?)"),
        (f"recipes.a.0.{TOY}.rate=2", "rate: expected less than or equal to 1, got 2"),
        (f"recipes.a.0.{TOY}.rate={{min: 0.1, max: 0.05}}", "expected min < max"),
        ("recipes.a.3.x=1", "recipes.a: expected a position from 0 to 0 in this list, got 3"),
        ("models.x=1", "expected a position from 0 to 0 in this list, got x"),
        ("targets.0.dtype=float32", "the file has no list targets; set all of it"),
        ("name.x=1", '"t" has no x in it'),
        ("name=[", "the value: not valid YAML"),
        ("name={a: 1, a: 2}", "the value: duplicate key"),
        ("name", "expected key=value"),
        ("=1", "expected key=value"),
        ("name=", "--set name=: name: expected a string, got null"),
        ("name=\udcff", "is not allowed in YAML"),
    ],
)
def test_overrides_that_cannot_be(tmp_path: Path, override: str, expected: str) -> None:
    message = _error(tmp_path, _yaml(), override)
    assert message.startswith("--set ")
    assert expected in message


def test_an_override_mends_what_the_file_has_wrong(tmp_path: Path) -> None:
    text = _yaml(rest="seeds: [.inf]\n")
    assert "out of range" in _error(tmp_path, text)
    assert _load(tmp_path, text, "seeds=[2]").seeds == [2]


def test_identity_holds_what_decides_the_numbers_and_nothing_else(tmp_path: Path) -> None:
    recipes = "a: [{TOY: {rate: 1}}], b: [{TOY: {rate: search}}]"
    one = _load(tmp_path, _yaml(recipes))
    assert re.fullmatch(r"t-[0-9a-f]{8}", one.sweep_id())
    json.dumps(one.identity())
    same = [
        _load(tmp_path, _yaml(recipes, rest="workers: 3\nquestion: What?\n")),
        _load(tmp_path, _yaml(recipes, measure="{gold: {}, noise_floor: true}")),
        _load(
            tmp_path, _yaml("b: [{TOY: {rate: {min: 1e-3, max: 0.1, log: true}}}], a: [{TOY: {rate: 1.0, steps: 10}}]")
        ),
        _load(tmp_path, _yaml(recipes, rest="seeds: [0]\nsampler: tpe\nobjectives: {gold_reward: maximize}")),
    ]
    assert {s.sweep_id() for s in same} == {one.sweep_id()}
    other = [
        _load(tmp_path, _yaml(recipes, rest=rest))
        for rest in (
            "seeds: [1]", "seeds: [0, 1]", "sampler: gp", "data: hub", "precision: float32", "scorer: hf",
            "objectives: {kl: minimize}", "objectives: {kl: minimize, gold_reward: maximize}",
            "objectives: {gold_reward: maximize, kl: minimize}", "constraints: {kl: {max: 3}}",
        )
    ]  # fmt: skip
    other += [
        _load(tmp_path, _yaml("a: [{TOY: {rate: 0.5}}], b: [{TOY: {rate: search}}]")),
        _load(tmp_path, _yaml("a: [{TOY: {rate: 1}}], b: [{use: a}, {TOY: {rate: search}}]")),
        _load(tmp_path, _yaml(recipes), "budget.trials_per_cell=3"),
    ]
    assert len({s.sweep_id() for s in [one, *other]}) == len(other) + 1


def test_how_an_endpoint_is_reached_and_paid_is_no_part_of_the_identity(tmp_path: Path) -> None:
    def judged(more: str) -> str:
        endpoint = "{endpoint: 'https://judge.example/v1', model: big" + more + "}"
        return _load(tmp_path, _yaml(measure="{gold: {}, judge: {panel: [base, " + endpoint + "]}}")).sweep_id()

    paid = ", max_cost: 2, input_price: 1, concurrency: 9, retries: 1, timeout_s: 5.0, key_env: MY_KEY, name: big"
    assert judged(paid) == judged("")
    assert len({judged(""), judged(", temperature: 1.0"), judged(", probabilities: true"), judged(", name: huge")}) == 4


def test_a_methods_new_version_is_another_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _load(tmp_path, _yaml()).sweep_id()
    monkeypatch.setattr(Toy, "version", 2)
    assert _load(tmp_path, _yaml()).sweep_id() != before


def test_a_suite_survives_its_own_json(tmp_path: Path) -> None:
    suite = _load(tmp_path, _yaml("a: [{TOY: {rate: search}}]", rest="constraints: {kl: {max: 3}}"))
    again = Suite.model_validate_json(suite.model_dump_json())
    assert again.sweep_id() == suite.sweep_id()


_BUILT_IN = sorted(m.name for m in pkgutil.iter_modules(methods.__path__) if not m.name.startswith("_"))


def test_the_shipped_json_schema_is_current() -> None:
    shipped = (ROOT / "harness" / "suite.schema.json").read_text(encoding="utf-8")
    assert shipped == schema_text(_BUILT_IN), "write it anew: harness schema > harness/suite.schema.json"


def _wrong(value: object, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether the value breaks the schema: the part of JSON Schema that a suite's schema uses."""
    if reference := schema.get("$ref"):
        return _wrong(value, root["$defs"][reference.rsplit("/", 1)[-1]], root)
    kinds = {
        "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
        "null": type(None),
    }  # fmt: skip
    allowed = schema.get("type", [])
    allowed = [allowed] if isinstance(allowed, str) else allowed
    fits_kind = [isinstance(value, kinds[k]) and (k == "boolean" or not isinstance(value, bool)) for k in allowed]
    if allowed and not any(fits_kind):
        return True
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return True
    if "anyOf" in schema and all(_wrong(value, s, root) for s in schema["anyOf"]):
        return True
    if "oneOf" in schema and sum(not _wrong(value, s, root) for s in schema["oneOf"]) != 1:
        return True
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return True
    if isinstance(value, list):
        return len(value) < schema.get("minItems", 0) or any(_wrong(v, schema.get("items", {}), root) for v in value)
    if isinstance(value, dict):
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        if any(key not in value for key in schema.get("required", [])):
            return True
        for key, child in value.items():
            fits = known.get(key) or next((s for p, s in patterns.items() if re.search(p, key)), None)
            rest = schema.get("additionalProperties", True)
            if fits is None and rest is False:
                return True
            if _wrong(child, fits if fits is not None else rest if isinstance(rest, dict) else {}, root):
                return True
        return False
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (value < schema.get("minimum", value) or value <= schema.get("exclusiveMinimum", value - 1))


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_the_json_schema_accepts_the_shipped_suites_and_refuses_typos(path: Path) -> None:
    schema = suite_json_schema()
    data = json.loads(load_suite(path).model_dump_json())
    assert not _wrong(data, schema, schema)
    assert _wrong({**data, "modles": []}, schema, schema)
    recipe, (first, *rest) = next(iter(data["recipes"].items()))
    ((method, given),) = first.items()
    for broken in ({"dop": given}, {method: {**given, "larning_rate": 1}}, {method: {**given, "learning_rate": 0}}):
        assert _wrong({**data, "recipes": {recipe: [broken, *rest]}}, schema, schema), broken


def test_the_json_schema_describes_every_key_and_offers_default_ranges() -> None:
    schema = suite_json_schema()
    assert all(value.get("description") for value in schema["properties"].values())
    rate = schema["$defs"]["step_dpo"]["properties"]["dpo"]["properties"]["learning_rate"]
    assert "learning rate" in rate["description"]
    assert any(option.get("const") == "search" for option in rate["anyOf"])


_SOURCE = SUITES[0].read_text(encoding="utf-8") if SUITES else _yaml()
_EXTRA = ("1e-6", "-1", "no", "null", "{}", "[]", "search", "&a", "*a")
_TOKENS = sorted({*re.findall(r"[\w.-]+|[^\w\s]", _SOURCE), *_EXTRA})


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    pieces = re.findall(r"[\w.-]+|\s+|[^\w\s]", _SOURCE)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(pieces) - 1))
        pieces[at] = draw(st.sampled_from(_TOKENS) | st.just("") | st.text(max_size=5))
    return "".join(pieces)


def _loads_or_says_why(path: Path, overrides: list[str]) -> bool:
    try:
        suite = load_suite(path, overrides)
    except UserError as error:
        # What a terminal can print, with a place on every line.
        str(error).encode()
        return all(line.startswith((f"{path}:", "--set ", "… and ")) for line in str(error).split("\n"))
    return bool(suite.sweep_id())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(_mutated(), st.text(max_size=200)), overrides=st.lists(st.text(max_size=20), max_size=1))
def test_no_text_gives_anything_but_a_suite_or_a_user_error(tmp_path: Path, text: str, overrides: list[str]) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(text.encode("utf-8", errors="replace"))
    assert _loads_or_says_why(path, overrides)


_WORDS = [
    "values",
    "min",
    "max",
    "log",
    "step",
    "use",
    "rate",
    "kind",
    "tasks",
    "gold",
    "judge",
    "model",
    "a",
    "base",
    "name",
    "limit",
    "helpfulness",
    "mmlu",
    "kl",
    "mmlu.acc",
    "score",
]
_LEAVES = [None, True, 0, 1, -1, 1e-6, 2.5, "a", "search", "base", "use", TOY, "maximize", "", "x" * 70]
_VALUES = st.recursive(
    st.sampled_from(_LEAVES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*_WORDS, TOY, RL]), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(st.sampled_from(sorted(Suite.model_fields)), _VALUES, min_size=1, max_size=3))
def test_no_data_gives_anything_but_a_suite_or_a_user_error(tmp_path: Path, data: dict[str, object]) -> None:
    good = {"name": "t", "models": ["m"], "recipes": {"a": [{TOY: {}}]}, "measure": {"gold": {}}}
    path = tmp_path / "f.yaml"
    path.write_text(json.dumps({**good, "budget": {"trials_per_cell": 1}, **data}), encoding="utf-8")
    assert _loads_or_says_why(path, [])
