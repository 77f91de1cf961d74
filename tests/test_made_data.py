"""Steps that make datasets, repeated groups, ready pipelines, judges and preparations of a step."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from harness._pipelines import PIPELINES
from harness.errors import UserError
from harness.execute import StageSpec
from harness.execute._made import made_dataset, made_rows
from harness.execute._stage import run_stage
from harness.execute._stage_judge import StageJudge
from harness.folders import Folders
from harness.measure.judge import LocalVoter
from harness.method import Context, Inputs, Made, Method, Params, Record, Role, find_method
from harness.models import load_model
from harness.plan import gather_facts
from harness.resolve import Run, chain, chain_ends, own_stages
from harness.store import Store
from harness.suite import Suite, load_suite
from tests.measure.judge.fault_server import completion, serving
from tests.methods.helpers import Log, turn

ALIKE = "kind words"


class EchoParams(Params):
    """What a step that makes pairs may have."""

    dataset: str = Field("prompts", description="prompts")
    judge: str | None = Field(None, description="who prefers")
    words: str = Field(ALIKE, description="the chosen answer")
    empty: bool = Field(False, description="make nothing")


class Echo(Method[EchoParams]):
    """Makes a pair of each of four prompts; the round decides which."""

    name = "echo"
    summary = "a toy"
    paper = "none"
    version = 1
    params = EchoParams
    needs = frozenset({"policy"})
    dataset_kind = "prompts"
    produces = "dataset"
    makes = "preferences"
    fixed: ClassVar[frozenset[str]] = frozenset({"judge", "words"})

    @classmethod
    def needs_with(cls, settings: Mapping[str, object]) -> frozenset[Role]:
        """A judge where one is named."""
        return cls.needs | ({"judge"} if settings["judge"] else set())

    @classmethod
    def reads(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """A word that is not to be had."""
        if settings["words"] == "nowhere":
            raise UserError("there is no file nowhere; expected words")
        return {"words": "their fingerprint"} if settings["words"] != ALIKE else {}

    def run(self, inputs: Inputs, params: EchoParams, context: Context) -> Made:
        """One pair a prompt."""
        if inputs.dataset is None or params.empty:
            return Made([])
        rows = inputs.dataset.to_list()[4 * context.round :][:4]
        made = [
            {"prompt": r["prompt"], "chosen": [turn("assistant", params.words)], "rejected": [turn("assistant", "no")]}
            for r in rows
        ]
        records = []
        for number, row in enumerate(rows):
            prompt = row["prompt"][-1]["content"]
            score = inputs.judge().prefer([(row["prompt"], params.words, "no")])[0] if params.judge else None
            records.append(
                Record(number, 0, "sample", prompt, params.words, by=params.judge or "", score=score, kept=True)
            )
        return Made(made, records, {"kept": float(len(made))})


class Prepared(Echo):
    """Learns nothing; wants pairs made before it."""

    name = "prepared"
    produces = "policy"
    makes = None

    @classmethod
    def prepares(cls, settings: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
        """The other toy, on the same prompts."""
        return ECHO, {"dataset": settings["dataset"], "words": "made before"}


ECHO, PREPARED = f"{__name__}:Echo", f"{__name__}:Prepared"
SIMPO = "simpo: {dataset: made, steps: 2, batch_size: 2, learning_rate: 1e-3}"


def _suite(folder: Path, model: Path | str, recipes: str, more: str = "") -> Suite:
    text = re.sub(r"\b(ECHO|PREPARED)\b", lambda found: f"'{globals()[found.group()]}'", recipes)
    lines = "".join(f"  {line.strip()}\n" for line in text.strip().splitlines())
    path = folder / "s.yaml"
    path.write_text(
        f"name: t\nmodels: ['{model}']\nrecipes:\n{lines}measure: {{profile: {{}}}}\n"
        f"budget: {{trials_per_cell: 1}}\n{more}"
    )
    return load_suite(path)


def _stages(suite: Suite, recipe: str, seed: int = 0) -> list[StageSpec]:
    return chain(gather_facts(suite), Run(recipe, suite.models[0], seed, {}))


def _problem(folder: Path, recipes: str) -> str:
    with pytest.raises(UserError) as refused:
        _suite(folder, "m", recipes)
    return str(refused.value)


def test_a_step_trains_on_what_the_step_before_it_made(tiny_model: Path, tmp_path: Path) -> None:
    suite = _suite(tmp_path, tiny_model, f"r: [{{ECHO: {{}}}}, {{{SIMPO}}}]")
    facts = gather_facts(suite)
    run = Run("r", suite.models[0], 0, {})
    making, training = specs = chain(facts, run)
    assert making.inputs == {"policy": f"model:{tiny_model}"}
    assert (training.dataset, training.inputs["data"]) == (None, making.key)
    assert chain_ends(facts, run, specs).policy == training.key
    for spec in specs:
        run_stage(spec, tmp_path / "results", Log())
    folder = Folders(tmp_path / "results").artifacts / making.key
    assert [r["chosen"][0]["content"] for r in made_rows(folder)] == [ALIKE] * 4  # type: ignore[index]  # rows of JSON
    assert made_dataset(folder, "preferences").column_names == ["prompt", "chosen", "rejected"]
    store = Store(tmp_path / "results")
    store.ingest()
    rows = store.query("SELECT * FROM raw.generations ORDER BY row").to_dicts()
    assert [(r["row"], r["kind"], r["text"], r["kept"]) for r in rows] == [(n, "sample", ALIKE, True) for n in range(4)]
    ((metrics,),) = store.query(f"SELECT metrics FROM stages WHERE stage = '{making.key}'").rows()
    assert json.loads(metrics) == {"kept": 4.0}


def test_a_set_without_rows_is_no_artifact(tiny_model: Path, tmp_path: Path) -> None:
    (spec,) = _stages(_suite(tmp_path, tiny_model, "r: [{ECHO: {empty: true}}]"), "r")
    with pytest.raises(UserError, match="no row came out"):
        run_stage(spec, tmp_path / "results", Log())
    assert not Folders(tmp_path / "results").holds(spec.key)


def test_a_repeated_group_goes_on_from_the_round_before(tiny_model: Path, tmp_path: Path) -> None:
    suite = _suite(
        tmp_path,
        tiny_model,
        f"r: [{{repeat: 3, steps: [{{ECHO: {{}}}}, {{{SIMPO}}}]}}]\nonce: [{{ECHO: {{}}}}, {{{SIMPO}}}]",
    )
    specs = _stages(suite, "r")
    assert [find_method(s.method).name for s in specs] == ["echo", "simpo"] * 3
    assert [s.round for s in specs] == [0, 0, 1, 1, 2, 2]
    assert len({s.key for s in specs}) == 6
    for earlier, later in zip(specs, specs[2:], strict=False):
        if later.method == "simpo":
            assert later.inputs["policy"] == earlier.key
    # The first round is the group itself, computed once for both recipes.
    assert [s.key for s in specs[:2]] == [s.key for s in _stages(suite, "once")]
    assert "round 2" in specs[2].label
    for spec in specs[:3]:
        run_stage(spec, tmp_path / "results", Log())
    artifacts = Folders(tmp_path / "results").artifacts
    first, second = (made_rows(artifacts / s.key) for s in (specs[0], specs[2]))
    assert not [r for r in first if r["prompt"] in [s["prompt"] for s in second]]


def test_settings_of_a_repeated_group_are_searched_once_for_all_rounds(tmp_path: Path) -> None:
    suite = _suite(tmp_path, "m", "r: [{repeat: 2, steps: [{dpo: {beta: search}}, {dpo: {beta: search}}]}]")
    assert list(suite.search_space("r")) == ["dpo.beta", "dpo_2.beta"]
    assert [(s.name, s.round) for s in suite.steps("r")] == [("dpo", 0), ("dpo_2", 0), ("dpo", 1), ("dpo_2", 1)]


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ("r: [{repeat: 0, steps: [{sft: {}}]}]", "expected how many times, a whole number from 1 to 100, got 0"),
        ("r: [{repeat: true, steps: [{sft: {}}]}]", "expected how many times"),
        ("r: [{repeat: 2, steps: []}]", "expected the list of steps to repeat"),
        ("r: [{repeat: 2, step: [{sft: {}}]}]", "unknown key of a repeated group (did you mean steps?)"),
        ("a: [{sft: {}}]\nr: [{repeat: 2, steps: [{use: a}]}]", "use stands among a recipe's own steps only"),
        ("r: [{repeat: 2, steps: [{sft: {stepz: 1}}]}]", "unknown setting of sft (did you mean steps?)"),
        ("r: [{dpo: {dataset: made}}]", "no step before it makes preferences"),
        ("r: [{ECHO: {}}, {sft: {dataset: made}}]", "no step before it makes instructions"),
        (
            "r: [{ECHO: {}}, {dpo: {dataset: {values: [made, preferences]}}}]",
            "cannot be searched beside other datasets",
        ),
        ("r: [{ECHO: {judge: {values: [self, base]}}}]", "judge decides what a step needs"),
        ("r: [{ECHO: {judge: r}}]", "a recipe cannot be its own judge; self is the policy as it comes into the step"),
        ("r: [{ECHO: {judge: bas}}]", 'no recipe or model "bas" (did you mean base?)'),
        ("a: [{ECHO: {judge: b}}]\nb: [{ECHO: {judge: a}}]", "recipes need each other in a circle"),
        ("r: [{pipeline: zephir}]", 'no pipeline "zephir" (did you mean zephyr?)'),
        ("r: [{pipeline: {name: zephyr, ppo: {}}}]", 'zephyr has no step "ppo"'),
        ("r: [{pipeline: {name: zephyr, dpo: {betta: 1}}}]", "unknown setting of dpo (did you mean beta?)"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, recipes: str, message: str) -> None:
    found = _problem(tmp_path, recipes)
    assert message in found
    assert re.match(r".*s\.yaml:\d+:\d+: recipes\.", found)
    assert len(found.splitlines()) == 1


def test_what_a_step_names_outside_the_suite_is_asked_for_first_and_is_part_of_its_key(
    tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"recipes\.r: echo: there is no file nowhere"):
        gather_facts(_suite(tmp_path, tiny_model, "r: [{ECHO: {words: nowhere}}]"))
    (spec,) = _stages(_suite(tmp_path, tiny_model, "r: [{ECHO: {words: other}}]"), "r")
    before = Echo.reads
    try:
        Echo.reads = classmethod(lambda cls, settings: {"words": "another fingerprint"})  # type: ignore[assignment]  # a changed file
        (changed,) = _stages(_suite(tmp_path, tiny_model, "r: [{ECHO: {words: other}}]"), "r")
    finally:
        Echo.reads = before  # type: ignore[method-assign]  # as it was
    assert spec.key != changed.key


def test_a_preparation_is_a_stage_of_its_own_that_trials_share(tiny_model: Path, tmp_path: Path) -> None:
    suite = _suite(tmp_path, tiny_model, "r: [{PREPARED: {words: one}}]\ns: [{PREPARED: {words: two}}]")
    facts = gather_facts(suite)
    one, two = (chain(facts, Run(r, suite.models[0], 0, {})) for r in ("r", "s"))
    assert [find_method(s.method).name for s in one] == ["echo", "prepared"]
    assert one[0].key == two[0].key
    assert one[1].inputs["prepared"] == one[0].key
    assert one[1].key != two[1].key
    assert own_stages(facts, Run("r", suite.models[0], 0, {})) == [one[1].key]


def test_a_pipeline_is_its_steps_with_the_settings_given_in_place_of_the_papers(tmp_path: Path) -> None:
    suite = _suite(tmp_path, "m", "r: [{pipeline: {name: zephyr, dpo: {beta: search, steps: 3}}}]")
    sft, dpo = suite.steps("r")
    assert (sft.method, dpo.method) == ("sft", "dpo")
    assert (dpo.settings["learning_rate"], dpo.settings["steps"]) == (5e-7, 3)
    assert list(suite.search_space("r")) == ["dpo.beta"]


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_every_pipeline_can_be_planned(tiny_model: Path, tmp_path: Path, name: str) -> None:
    specs = _stages(_suite(tmp_path, tiny_model, f"r: [{{pipeline: {name}}}]"), "r")
    assert [s.method for s in specs if not s.method.startswith("methods.")] == [m for m, _ in PIPELINES[name].steps]


def test_another_recipe_judges(tiny_model: Path, tmp_path: Path) -> None:
    suite = _suite(tmp_path, tiny_model, "a: [{sft: {}}]\nr: [{ECHO: {judge: a}}]")
    assert suite.needs("r") == ["a"]
    taught, making = _stages(suite, "r")
    assert making.inputs["judge"] == taught.key
    assert suite.recipe_order() == ["a", "r"]


@pytest.mark.parametrize("judge", ["self", "base"])
def test_a_step_is_judged_by_its_policy_or_the_base_model(tiny_model: Path, tmp_path: Path, judge: str) -> None:
    suite = _suite(tmp_path, tiny_model, f"r: [{{sft: {{}}}}, {{ECHO: {{judge: {judge}}}}}]")
    first, making = _stages(suite, "r")
    assert making.inputs["judge"] == (first.key if judge == "self" else f"model:{tiny_model}")
    loaded = load_model(tiny_model)
    # The examples of the templates are long in a vocabulary of 600.
    loaded.model.config.max_position_embeddings = 4096
    by = StageJudge(LocalVoter(loaded, judge, making.inputs["judge"]))
    prompt = [turn("user", "say apple")]
    (better, worse), (by_principle,) = (
        by.prefer([(prompt, "apple apple", "no"), (prompt, "no", "apple apple")]),
        by.prefer([(prompt, "apple apple", "no")], ["The better answer is longer."]),
    )
    # Both orders are asked, so that who stands first decides nothing.
    assert better == pytest.approx(1 - worse)
    assert better != by_principle
    assert by.prefer([(prompt, "no", "no")]) == [0.5]
    one, other = by.rate(
        [(prompt, "apple apple"), ([*prompt, turn("assistant", "no"), turn("user", "again")], "apple")]
    )
    assert 1 <= one <= 10
    assert 1 <= other <= 10
    assert by.name == judge


def test_a_judge_behind_an_endpoint_is_named_by_the_suite_and_asked_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key")
    # Of one pair it says nothing that is a verdict, which is a tie as well, and counted.
    said = iter(["I cannot say."])
    with serving(lambda request, times: completion(next(said, "It is kind.\n[[first]]"))) as server:
        judges = f"judges:\n  far: {{endpoint: '{server.url}', model: m, probabilities: false}}\n"
        suite = _suite(tmp_path, tiny_model, f"r: [{{ECHO: {{judge: far}}}}, {{{SIMPO}}}]", judges)
        making, training = _stages(suite, "r")
        assert making.inputs == {"judge": "endpoint:far", "policy": f"model:{tiny_model}"}
        assert training.endpoint is None
        for _ in range(2):
            run_stage(making, tmp_path / "one", Log())
            # Two orders of four pairs; when the stage is computed again nothing is paid for twice.
            assert len(server.requests) == 8
            shutil.rmtree(tmp_path / "one" / "artifacts")
    store = Store(tmp_path / "one")
    store.ingest()
    # Whoever stands first is preferred: in both orders that is a tie.
    found = store.query('SELECT "by", score FROM raw.generations ORDER BY row').rows()
    assert {by for by, _ in found} == {"far"}
    assert sorted(score for _, score in found)[1:-1] == [0.5, 0.5]
    ((metrics,),) = store.query(f"SELECT metrics FROM stages WHERE stage = '{making.key}'").rows()
    assert json.loads(metrics) == {"kept": 4.0, "judge_asked": 8.0, "judge_unparsed": 1.0}


def test_a_judge_is_part_of_the_key_and_its_prices_are_not(tiny_model: Path, tmp_path: Path) -> None:
    def key(model: str, price: float) -> tuple[str, str]:
        judges = f"judges: {{far: {{endpoint: 'http://127.0.0.1:9/v1', model: {model}, input_price: {price}}}}}\n"
        suite = _suite(tmp_path, tiny_model, "r: [{ECHO: {judge: far}}]", judges)
        return _stages(suite, "r")[0].key, suite.sweep_id()

    assert key("m", 1.0) == key("m", 2.0)
    assert not set(key("m", 1.0)) & set(key("n", 1.0))
    taken = "judges: {r: {endpoint: 'http://127.0.0.1:9/v1', model: m}}\n"
    with pytest.raises(UserError, match=r"judges\.r: a judge needs a name of its own"):
        _suite(tmp_path, "m", "r: [{sft: {}}]", taken)


def test_a_soft_prompt_is_refused_on_attention_that_cannot_run_it(tiny_model: Path, tmp_path: Path) -> None:
    targets = "targets: [{name: plain}, {name: flexible, attention: flex}]\n"
    soft = "r: [{sft: {adapter: prompt_tuning, lora_merge: false}}]"
    with pytest.raises(UserError, match=r"flex attention \(target flexible\) runs no soft prompt"):
        gather_facts(_suite(tmp_path, tiny_model, soft, targets))
