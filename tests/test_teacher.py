"""Who teaches whom: which model a step's `teacher` means, which stages that takes, and what is refused at once."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from harness._recipes import read_recipes
from harness._teachers import dependencies
from harness.data import DataSource
from harness.errors import UserError
from harness.execute import StageSpec
from harness.method import Context, Inputs, Method, Params, Role, Trained
from harness.resolve import Facts, Run, chain, chain_ends
from harness.suite import Suite, load_suite


class ShrinkParams(Params):
    """What a compression may have."""

    part: float = Field(0.5, gt=0, lt=1, description="what is taken away")


class Shrink(Method[ShrinkParams]):
    """A step that compresses the policy."""

    name = "shrink"
    summary = "a toy"
    paper = "none"
    version = 1
    params = ShrinkParams
    needs = frozenset({"policy"})
    dataset_kind = None
    compresses = True

    def run(self, inputs: Inputs, params: ShrinkParams, context: Context) -> Trained:
        """Never run here."""
        raise NotImplementedError


class Score(Shrink):
    """A step that learns a reward from a teacher."""

    name = "score"
    needs: ClassVar[frozenset[Role]] = frozenset({"policy", "teacher"})
    produces = "reward"
    compresses = False


SHRINK, SCORE = f"{__name__}:Shrink", f"{__name__}:Score"


def _suite(tmp_path: Path, recipes: str, models: str = "[m]") -> Suite:
    """`recipes` as YAML in flow style, with SHRINK and SCORE for the methods here."""
    text = re.sub(r"\b(SHRINK|SCORE)\b", lambda found: f"'{globals()[found.group()]}'", recipes)
    lines = "".join(f"  {line.strip()}\n" for line in text.strip().splitlines())
    path = tmp_path / "s.yaml"
    path.write_text(
        f"name: t\nmodels: {models}\nrecipes:\n{lines}measure: {{profile: {{}}}}\nbudget: {{trials_per_cell: 1}}\n"
    )
    return load_suite(path)


def _facts(suite: Suite, **changes: Any) -> Facts:
    known: dict[str, Any] = {
        "suite": suite,
        "source": DataSource("bundled"),
        "precision": "float32",
        "models": {"m": "key of m"},
        "datasets": {(kind, kind): f"rows of {kind}" for kind in ("instructions", "preferences", "prompts")},
        "tasks": {},
        "gold": None,
        "judge": None,
        "machine": {},
        "library_versions": {"torch": "1"},
    }
    return Facts(**{**known, **changes})


def _stages(suite: Suite, recipe: str, settings: Any = None, **changes: Any) -> list[StageSpec]:
    return chain(_facts(suite, **changes), Run(recipe, "m", 0, settings or {}))


def _methods(stages: list[StageSpec]) -> list[str]:
    return [stage.method.rpartition(":")[2] for stage in stages]


# -- which model it is -------------------------------------------------------------------------------------------------


def test_by_default_it_is_the_policy_before_the_first_compression(tmp_path: Path) -> None:
    suite = _suite(
        tmp_path,
        """
        plain: [sft: {}, SHRINK: {}, dpo: {}, SHRINK: {part: 0.2}, distill: {}]
        start: [SHRINK: {}, distill: {}]
        inherited: [use: plain, distill: {steps: 5}]
        """,
    )
    sft, shrunk, reference, dpo, again, distill = _stages(suite, "plain")
    assert distill.inputs == {"policy": again.key, "teacher": sft.key}
    assert dpo.inputs == {"policy": shrunk.key, "prepared": reference.key}
    assert _stages(suite, "start")[-1].inputs["teacher"] == "model:m"
    assert _stages(suite, "inherited")[-1].inputs == {"policy": distill.key, "teacher": sft.key}


def test_a_student_of_fewer_layers_learns_from_all_of_them(tmp_path: Path) -> None:
    suite = _suite(
        tmp_path,
        """
        a: [sft: {}, distill: {student_layers: 4}, distill: {}]
        b: [distill: {student_layers: {min: 4, max: 8}}]
        """,
    )
    sft, small, more = _stages(suite, "a")
    assert small.inputs == {"policy": sft.key, "teacher": sft.key}
    assert more.inputs == {"policy": small.key, "teacher": sft.key}
    searched = _stages(suite, "b", {"b": {"distill.student_layers": 6}})
    assert searched[0].inputs == {"policy": "model:m", "teacher": "model:m"}


def test_base_is_the_untouched_model(tmp_path: Path) -> None:
    suite = _suite(tmp_path, "a: [sft: {}, distill: {teacher: base}]")
    assert _stages(suite, "a")[-1].inputs["teacher"] == "model:m"


def test_a_recipe_is_its_final_policy_and_its_stages_stand_before(tmp_path: Path) -> None:
    suite = _suite(
        tmp_path,
        """
        small: [use: sft, SHRINK: {}, distill: {teacher: ppo, steps: 7}, sft: {steps: 9}]
        ppo: [use: sft, reward_model: {}, ppo: {iterations: {min: 2, max: 5}}]
        sft: [sft: {steps: 3}]
        """,
    )
    settings = {"ppo": {"ppo.iterations": 4}}
    stages = _stages(suite, "small", settings)
    # What both begin with stands once.
    assert _methods(stages) == ["sft", "Shrink", "reward_model", "ppo", "distill", "sft"]
    own = _stages(suite, "ppo", settings)
    sft, shrunk, reward, ppo, distill, last = (stage.key for stage in stages)
    assert [sft, reward, ppo] == [stage.key for stage in own]
    assert stages[4].inputs == {"policy": shrunk, "teacher": ppo}
    assert stages[5].inputs == {"policy": distill}
    assert stages[2].label.startswith("ppo reward_model")
    # Every input is made before it is needed.
    for place, stage in enumerate(stages):
        assert {ref for ref in stage.inputs.values() if ref != "model:m"} <= {s.key for s in stages[:place]}
    # The teacher's reward model is not this run's.
    ends = chain_ends(_facts(suite), Run("small", "m", 0, settings), stages)
    assert (ends.policy, ends.artifact, ends.reward) == (last, last, None)
    assert chain_ends(_facts(suite), Run("ppo", "m", 0, settings), own).reward == reward
    # Another seed has another teacher, other settings of the teacher too.
    other = chain(_facts(suite), Run("small", "m", 1, settings))
    assert other[4].inputs["teacher"] != ppo
    assert _stages(suite, "small", {"ppo": {"ppo.iterations": 5}})[4].key != distill
    with pytest.raises(UserError, match=r"recipe 'ppo': no value for ppo\.iterations"):
        _stages(suite, "small")


def test_the_last_step_of_a_run_may_be_a_reward_learned_from_a_teacher(tmp_path: Path) -> None:
    suite = _suite(tmp_path, "big: [sft: {}]\na: [SHRINK: {}, SCORE: {}, distill: {teacher: big}]")
    stages = _stages(suite, "a")
    assert _methods(stages) == ["Shrink", "Score", "sft", "distill"]
    assert stages[1].inputs == {"policy": stages[0].key, "teacher": "model:m"}
    ends = chain_ends(_facts(suite), Run("a", "m", 0, {}), stages)
    assert (ends.policy, ends.reward) == (stages[3].key, stages[1].key)


def test_a_model_of_its_own_enters_the_key_by_its_files(tmp_path: Path) -> None:
    suite = _suite(tmp_path, "a: [distill: {teacher: org/large}]")
    keys = []
    for print_ in ("one", "other"):
        stage = _stages(suite, "a", models={"m": "key of m", "org/large": print_})[0]
        assert stage.inputs == {"policy": "model:m", "teacher": "model:org/large"}
        assert stage.params["teacher"] == "org/large"
        keys.append(stage.key)
    assert keys[0] != keys[1]
    # The same files under another name are the same teacher.
    moved = _suite(tmp_path, "a: [distill: {teacher: ./large}]")
    assert _stages(moved, "a", models={"m": "key of m", "./large": "one"})[0].key == keys[0]


def test_a_searched_teacher_is_the_trials(tmp_path: Path) -> None:
    suite = _suite(tmp_path, "sft: [sft: {}]\na: [SHRINK: {}, distill: {teacher: {values: [sft, base, null]}}]")
    found = [_stages(suite, "a", {"a": {"distill.teacher": name}}) for name in ("sft", "base", None)]
    assert [_methods(stages) for stages in found] == [["Shrink", "sft", "distill"], *[["Shrink", "distill"]] * 2]
    assert found[0][-1].inputs["teacher"] == found[0][1].key
    # Base by name, and because it is what was compressed: one teacher, one stage.
    assert found[1][-1].key == found[2][-1].key


def test_a_recipe_needs_its_teachers_and_what_they_need(tmp_path: Path) -> None:
    raw = {
        "last": [{"use": "small"}, {"sft": {}}],
        "small": [{SHRINK: {}}, {"distill": {"teacher": {"values": ["ppo", "dpo", "base"]}}}],
        "ppo": [{"use": "rm"}, {"ppo": {}}],
        "rm": [{"reward_model": {}}],
        "dpo": [{"dpo": {}}],
    }
    steps, uses, problems = read_recipes(raw)
    assert not problems
    assert dependencies(steps, uses, "last") == ["rm", "ppo", "dpo", "small"]
    assert dependencies(steps, uses, "dpo") == dependencies(steps, uses, "base") == []


# -- what is refused when the suite is read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (
            "sft: [sft: {}]\na: [SHRINK: {}, distill: {teacher: stf}]",
            r's.yaml:5:\d+: recipes.a.1.distill.teacher: no recipe or model "stf" \(did you mean sft\?\); a hub id is',
        ),
        ("a: [SHRINK: {}, distill: {teacher: smollm2-135m}]", r"did you mean smollm2-135m-instruct\?"),
        ("a: [distill: {teacher: {values: [base, x]}}]", r"recipes.a.0.distill.teacher.values.1: no recipe or model"),
        ("a: [SHRINK: {}, distill: {teacher: a}]", "recipes.a.1.distill.teacher: a recipe cannot be its own teacher"),
        (
            "a: [use: b, sft: {}]\nb: [SHRINK: {}, distill: {teacher: c}]\nc: [use: a, sft: {}]",
            r"s.yaml:5:\d+: recipes.b.1.distill.teacher: recipes need each other in a circle: b → c → a → b$",
        ),
        (
            "a: [SHRINK: {}, distill: {teacher: b}]\nb: [SHRINK: {}, distill: {teacher: a}]",
            r"s.yaml:4:\d+: recipes.a.1.distill.teacher: recipes need each other in a circle: a → b → a$",
        ),
        ("a: [distill: {}]", "distill has no teacher: nothing before it compresses .* set student_layers, or put a"),
        ("a: [sft: {}, distill: {}, SHRINK: {}]", r"recipes.a.1.distill: distill has no teacher"),
        ("a: [SCORE: {}]", r"Score has no teacher: nothing before it .* name a teacher, put a step"),
        ("a: [distill: {student_layers: {values: [4, null]}}]", "distill has no teacher"),
        ("a: [distill: {teacher: base}]", "recipes.a.0.distill.teacher: distill would learn from itself"),
        ("a: [distill: {teacher: {values: [org/x, base]}}]", "teacher.values.1: distill would learn from itself"),
        (
            "a: [use: sft, distill: {teacher: sft}]\nsft: [sft: {}]",
            "a.1.distill.teacher: distill would learn from itself",
        ),
        (
            "sft: [sft: {}]\nrm: [use: sft, reward_model: {}]\na: [use: rm, distill: {teacher: sft}]",
            "distill would learn from itself",
        ),
    ],
)
def test_what_cannot_teach_is_refused(tmp_path: Path, recipes: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        _suite(tmp_path, recipes)
    found = str(caught.value)
    assert re.search(message, found), found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize(
    "recipes",
    [
        "a: [sft: {}, distill: {teacher: base}]",
        "a: [use: sft, SHRINK: {}, distill: {teacher: sft}]\nsft: [sft: {}]",
        "a: [distill: {teacher: sft}]\nsft: [sft: {}]",
        "a: [distill: {teacher: base, student_layers: 3}]",
        "a: [distill: {teacher: ./folder}]\nb: [distill: {teacher: ~/folder}]\nc: [distill: {teacher: org/name}]",
        "a: [distill: {teacher: smollm2-135m-instruct}]",
        "a: [SHRINK: {}, distill: {teacher: b}]\nb: [SHRINK: {part: 0.1}, distill: {}]",
    ],
)
def test_what_can_teach_is_accepted(tmp_path: Path, recipes: str) -> None:
    assert "a" in _suite(tmp_path, recipes).recipe_order()


def test_a_base_model_cannot_teach_itself() -> None:
    raw = {"a": [{"distill": {"teacher": "large"}}], "b": [{"sft": {}}, {"distill": {"teacher": "large"}}]}
    (problem,) = read_recipes(raw, ["small", "large"])[2]
    assert problem.path == ("recipes", "a", 0, "distill", "teacher")
    assert "learn from itself" in problem.message
    # Another model's name is no recipe and no path: it must be one of the suite's.
    assert len(read_recipes(raw, ["small"])[2]) == 2


# -- what was there before ---------------------------------------------------------------------------------------------


def test_stages_without_a_teacher_keep_their_keys(tmp_path: Path) -> None:
    suite = _suite(
        tmp_path,
        """
        sft: [sft: {}]
        dpo: [use: sft, dpo: {beta: 0.2}]
        ppo: [use: dpo, reward_model: {steps: 4}, ppo: {lora_rank: 2}]
        """,
    )
    # What DPO's reference says is a stage of its own by now, and no part of DPO's key.
    assert [stage.key for stage in _stages(suite, "ppo") if ":" not in stage.method] == KEYS


KEYS = [
    "5ddd6c8db98a3dd19560ecd911a00761",
    "ffabdd3afa6743ce3ccf09a598901b77",
    "59e0fe219da5dfe404bd59b4a61eaa2b",
    "42b2574e07f1001fab5377b9fe59e143",
]
"""As they were before there were teachers or a choice of optimizers: what is computed is not computed again.

All but the first are those since DPO's version 2, from whose policy the others go on, and PPO's.
"""
