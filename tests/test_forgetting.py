"""Continual learning through a sweep: domains measured after each step, replay, EWC and merging by recipe."""

import html
import json
import math
from pathlib import Path

import pytest

from harness.data import DataSource, half_of, load_training_set
from harness.errors import UserError
from harness.gates._contamination import _trained
from harness.gates._evidence import read_evidence
from harness.measure.domains import domain_documents, measure_domain
from harness.models import load_model
from harness.objectives import values_of
from harness.plan import Plan, gather_facts
from harness.report import validity, write_report
from harness.report._forgetting import backward_transfer, ways
from harness.report._html import number
from harness.report._queries import read_facts
from harness.report._words import span
from harness.resolve import Run, chain
from harness.store import Store
from harness.suite import load_suite
from tests.in_process import planned, swept
from tests.in_process import rows as _rows
from tests.methods.helpers import completion_log_prob

SUITE = """
name: continual
models: [{model}]
recipes:
  sequential:
    - sft: &quick {{dataset: medical, steps: 2, batch_size: 2, learning_rate: 1e-3}}
    - sft: {{dataset: legal, steps: 2, batch_size: 2, learning_rate: 1e-3}}
  kept:
    - sft: {{dataset: medical, steps: 2, batch_size: 2, learning_rate: 1e-3}}
    - sft:
        dataset: legal
        steps: 2
        batch_size: 2
        learning_rate: {{min: 1e-4, max: 1e-3}}
        replay: [medical, education]
        replay_fraction: 0.5
        ewc_weight: 10
        ewc_dataset: medical
        ewc_rows: 2
  averaged:
    - use: sequential
    - sft: *quick
    - sft: {{dataset: education, steps: 1, batch_size: 2}}
    - merge: {{}}
  ties: [{{merge: {{models: [sequential, kept], how: ties, weight_1: {{min: 0.2, max: 0.8}}}}}}]
measure:
  domains: {{medical: medical, legal: legal}}
  domain_limit: 12
objectives: {{domain_loss: minimize, domain.legal: minimize}}
precision: float32
seeds: [0, 1]
budget: {{trials_per_cell: 2}}
"""


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "continual.yaml"
    path.write_text(SUITE.format(model=tiny_model))
    return path


@pytest.fixture(scope="module")
def ran(suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    results = tmp_path_factory.mktemp("forgetting") / "results"
    plan = planned(suite_file, results)
    assert swept(plan, results).failures == []
    return results, plan


def test_every_final_run_is_measured_after_each_step(ran: tuple[Path, Plan]) -> None:
    steps = _rows(
        ran[0], "SELECT DISTINCT recipe, seed, step, step_name FROM forgetting WHERE recipe <> 'base' ORDER BY ALL"
    )
    names = {
        "sequential": ["base", "sft", "sft_2"],
        "kept": ["base", "sft", "sft_2"],
        "averaged": ["base", "sft", "sft_2", "sft", "sft_2", "merge"],
        "ties": ["base", "merge"],
    }
    assert steps == sorted((r, s, n, name) for r, own in names.items() for s in (0, 1) for n, name in enumerate(own))
    cells = "SELECT count(*) FROM forgetting GROUP BY recipe, seed, step HAVING count(*) <> 4"
    assert _rows(ran[0], cells) == []


def test_the_last_step_is_the_final_figure_and_the_first_the_base_models(ran: tuple[Path, Plan]) -> None:
    last = _rows(
        ran[0],
        "SELECT count(*), count(*) FILTER (WHERE abs(f.value - s.value) < 1e-12 AND f.n = s.n) "
        "FROM forgetting f JOIN scores s USING (sweep, recipe, model, trial, seed, artifact, metric, measurement) "
        "WHERE s.phase = 'final' AND s.task = 'domain.' || f.domain",
    )
    # 4 recipes and the base model's one run, with two seeds, domains and metrics.
    assert last == [(4 * 2 * 4 + 4, 4 * 2 * 4 + 4)]
    starts = "SELECT count(DISTINCT measurement) FROM forgetting WHERE step = 0"
    assert _rows(ran[0], starts) == [(2,)]


def test_the_loss_is_what_plain_computing_gives(tiny_model: Path) -> None:
    rows, _ = load_training_set("medical", "instructions", DataSource("bundled"), split="test")
    documents = domain_documents(rows, 6)
    loaded = load_model(tiny_model)
    found = measure_domain(loaded, documents, ("tune", "final"))
    assert [r["metric"] for r in found] == ["loss", "token_accuracy"] * 6
    for document, loss, accuracy in zip(documents, found[::2], found[1::2], strict=True):
        value, tokens = completion_log_prob(loaded, loaded.model, document.prompt, document.completion)
        assert loss["score"] == pytest.approx(-value / tokens, abs=1e-4)
        right = float(str(accuracy["score"])) * tokens
        assert right == pytest.approx(round(right), abs=1e-9)
        assert loss["expected"] == document.completion[0]["content"]
        assert (
            loss["half"] == document.half == half_of(json.dumps([document.prompt, document.completion], sort_keys=True))
        )
    again = measure_domain(loaded, documents, ("tune", "final"), repeat=1)
    assert [r["score"] for r in again] == pytest.approx([r["score"] for r in found], abs=1e-5)
    only = measure_domain(loaded, documents, ("final",))
    assert {r["document"] for r in only} == {d.identity for d in documents if d.half == "final"}


def test_tuning_goes_by_the_other_half_of_the_documents(ran: tuple[Path, Plan]) -> None:
    results, plan = ran
    tuned = _rows(results, "SELECT objectives FROM trials WHERE recipe = 'kept' AND phase = 'tune' ORDER BY trial")
    assert len(tuned) == 2
    values = json.loads(tuned[0][0])
    scored = _rows(
        results,
        "SELECT task, value FROM scores WHERE recipe = 'kept' AND trial = 0 AND split = 'tune' AND metric = 'loss'",
    )
    assert values["domain_loss"] == pytest.approx(sum(v for _, v in scored) / 2)
    assert values["domain.legal"] == pytest.approx(dict(scored)["domain.legal"])
    keys = [k for (k,) in _rows(results, "SELECT DISTINCT measurement FROM scores WHERE recipe='kept' AND trial=0")]
    with Store(results).reading():
        assert values_of(Store(results), plan.suite, "kept", keys) == pytest.approx(values)
    halves = "SELECT count(DISTINCT half) FROM samples WHERE measurement IN (SELECT measurement FROM raw.step_links)"
    assert _rows(results, halves) == [(1,)]


def test_a_sweep_run_again_measures_nothing_anew_and_links_nothing_twice(
    ran: tuple[Path, Plan], suite_file: Path
) -> None:
    results, _ = ran
    before = _rows(results, "SELECT count(*) FROM raw.step_links")
    plan = planned(suite_file, results)
    assert plan.estimate.measurements == plan.estimate.measured > 0
    assert swept(plan, results).computed == 0
    assert _rows(results, "SELECT count(*) FROM raw.step_links") == before


def test_what_a_step_names_beside_its_dataset_is_in_its_key(suite_file: Path) -> None:
    suite = load_suite(suite_file)
    facts = gather_facts(suite)
    assert set(facts.datasets) == {(n, "instructions") for n in ("medical", "legal", "education")}
    run = Run("kept", suite.models[0], 0, {"kept": {"sft_2.learning_rate": 1e-3}})
    spec = chain(facts, run)[1]
    assert spec.datasets == {n: facts.datasets[n, "instructions"] for n in ("medical", "education")}
    changed = {**facts.datasets, ("education", "instructions"): "0" * 32}
    other = chain(type(facts)(**{**vars(facts), "datasets": changed}), run)[1]
    assert other.key != spec.key
    # Steps without any have the keys that they had before there were such settings.
    assert chain(facts, run)[0].datasets == {}
    assert "replay" not in chain(facts, run)[0].params


def test_merging_takes_the_policies_of_its_own_recipe_or_of_the_named_ones(suite_file: Path) -> None:
    suite = load_suite(suite_file)
    facts = gather_facts(suite)
    model = suite.models[0]
    settings = {"kept": {"sft_2.learning_rate": 1e-3}, "ties": {"merge.weight_1": 0.5}}
    own = chain(facts, Run("averaged", model, 0, {}))
    assert own[-1].inputs == {"origin": f"model:{model}", "merge_0": own[-3].key, "merge_1": own[-2].key}
    named = chain(facts, Run("ties", model, 0, settings))
    ends = [chain(facts, Run(r, model, 0, settings))[-1].key for r in ("sequential", "kept")]
    assert named[-1].inputs == {"origin": f"model:{model}", "merge_0": ends[0], "merge_1": ends[1]}
    assert suite.needs("ties") == ["sequential", "kept"]


LOSS = "objectives={domain_loss: minimize}"


def _refused(suite_file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        gather_facts(load_suite(suite_file, overrides))
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipes.ties.0.merge.models=[sequential, ties]", "a recipe cannot be its own merge"),
        ("recipes.ties.0.merge.models=[sequential, kepd]", "no recipe or model"),
        ("recipes.averaged.3.merge={weights: [1, 1, 1]}", "merges 2 policies, and weights has 3"),
        ("recipes.averaged=[{sft: {}}, {merge: {}}]", "needs at least two policies"),
        ("recipes.sequential.0.sft={replay: [medical, legall]}", "'legall': expected one of"),
        ("recipes.sequential.0.sft={replay: prompts}", "do not make instructions"),
        ("measure.domains={legal: legal, medical: medikal}", "measure.domains.medical: expected one of"),
        ("measure.domains={legal: legal, medical: instructions}", "dataset 'instructions': "),
        ("objectives={domain.history: minimize}", "no domain history is measured"),
        ("measure={profile: {}}", "domain_loss needs measure.domains"),
        ("early_stopping={documents: {}}", "expected a single objective that is a mean over documents"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(suite_file: Path, override: str, message: str) -> None:
    assert message in _refused(suite_file, override)


def test_rows_that_are_trained_on_cannot_be_held_out(suite_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "some" / "set"
    folder.mkdir(parents=True)
    rows, _ = load_training_set("medical", "instructions", DataSource("bundled"))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = _refused(suite_file, f"data={tmp_path / 'data'}", "measure.domains={mine: some/set}", LOSS)
    assert "12 of 12 documents of 'some/set' are rows of 'medical', which a step trains on" in said


@pytest.mark.parametrize("domain", ["medical", "legal", "education"])
def test_the_bundled_domains_share_no_fact_between_their_splits(domain: str) -> None:
    from harness.bundled.make_domains import FACTS, make_rows

    for split in ("train", "test"):
        rows, _ = load_training_set(domain, "instructions", DataSource("bundled"), split=split)
        made = make_rows(domain, held_out=split == "test")
        assert [dict(row) for row in rows] == made
    train, test = make_rows(domain, held_out=False), make_rows(domain, held_out=True)
    assert (len(train), len(test)) == (150, 50)
    held = [term for place, (term, _, _) in enumerate(FACTS[domain]) if place % 4 == 0]
    asked = [row["prompt"][0]["content"] for row in test]
    assert all(any(term in question for term in held) for question in asked)
    whats = {what for place, (_, what, _) in enumerate(FACTS[domain]) if place % 4 == 0}
    assert not [row for row in train if any(what in row["completion"][0]["content"] for what in whats)]
    assert not {json.dumps(r["prompt"]) for r in train} & {json.dumps(r["prompt"]) for r in test}
    assert math.isclose(sum(d.half == "final" for d in domain_documents(test)) / len(test), 0.5, abs_tol=0.2)


def test_the_report_shows_the_matrix_of_every_recipe_with_two_steps(ran: tuple[Path, Plan], tmp_path: Path) -> None:
    results, plan = ran
    store = Store(results)
    path = write_report(store, plan.sweep, tmp_path)
    with store.reading():
        facts = read_facts(store, plan.sweep)
        found = {way.who.label: way for way in ways(store, facts)}
    assert set(found) == {"sequential", "kept", "averaged"}
    way = found["sequential"]
    assert list(way.steps) == ["base", "sft on medical", "sft_2 on legal"]
    assert list(way.trained) == ["", "medical", "legal"]
    assert list(way.domains) == ["medical", "legal"]
    # One measurement of the base model, two trainings.
    assert {len(s) for s in way.scores["loss"][0, "medical"].values()} == {1}
    assert {len(s) for s in way.scores["loss"][1, "medical"].values()} == {2}
    assert found["averaged"].trained[-1] == ""
    shown = dict(
        _rows(
            results,
            "SELECT domain, avg(value) FROM forgetting WHERE recipe = 'sequential' AND step = 2 "
            "AND metric = 'loss' GROUP BY domain",
        )
    )
    page = html.unescape(path.read_text(encoding="utf-8"))
    part = page[page.index(">Forgetting<") : page.index('id="search-part"')]
    assert all(f">{number(value)}" in part for value in shown.values())
    # Of two matrices; the note explains the mark. What is learned last by averaged is not among the domains.
    assert part.count("◆") == 2 * (2 + 2 + 3) + 1
    transfer = backward_transfer(way)
    assert transfer is not None
    assert span(transfer.low, transfer.high) in part


def test_the_gates_look_at_domains_as_at_tasks(ran: tuple[Path, Plan]) -> None:
    results, plan = ran
    with Store(results).reading():
        found = validity(Store(results), plan.sweep)
    assert not [one for one in found.unchecked if "domain." in one.task]
    # What is held out shares words with what was trained on, but no row holds a whole document.
    assert not [one for one in found.flags if one.gate == "contamination"]


def test_what_is_replayed_counts_as_training_data(ran: tuple[Path, Plan]) -> None:
    evidence = read_evidence(Store(ran[0]), ran[1].sweep, None, None)
    (model,) = ran[1].suite.models
    with Store(ran[0]).reading():
        trained = _trained(evidence)
    assert {name for name, _, _ in trained["kept", model]} == {"medical", "legal", "education"}
    assert {name for name, _, _ in trained["sequential", model]} == {"medical", "legal"}
