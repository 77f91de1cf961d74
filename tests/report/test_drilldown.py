"""Task by task and subject by subject: worst losses first, with the intervals of the rest of the page, and small."""

import re
from pathlib import Path

import pytest

from harness.report._compare import against_base, estimate, scores_of
from harness.report._drilldown import drill_down
from harness.report._queries import Facts, read_facts
from harness.report._words import difference_text
from harness.stats import benjamini_hochberg, cluster_interval, paired_difference
from harness.store import Store
from tests.report.made import made_facts
from tests.report.stores import derive, nothing
from tests.store.scenario import SWEEP

SUBJECTS = [f"mmlu_s{n}" for n in range(57)]


def _score(recipe: str, task: str, seed: int, document: int) -> float:
    """Recipes lose in the subjects of higher number, the more so the higher their own."""
    if recipe == "base":
        return float(document % 10 < 6)
    lost = int(recipe[1:]) * int(task.rpartition("s")[2] or 0) / 20
    return float((document * 3 + seed) % 10 < 6 - lost)


def _text(markup: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup)).strip()


def _rows(markup: str) -> list[list[str]]:
    return [[_text(c) for c in re.split(r"<td[^>]*>", r)[1:]] for r in re.findall(r"<tr>(<td.*?)</tr>", markup)]


def test_scores_and_differences_are_those_of_the_page(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    made = drill_down(facts)
    folds = re.findall(r"<details><summary>(.*?)</summary>(.*?)</details>", made, re.DOTALL)
    assert next(_text(s).split(" · ")[0] for s, _ in folds).startswith("gsm8k")
    assert len(folds) == 4
    mmlu = next(_rows(body) for summary, body in folds if summary.startswith("mmlu, acc"))
    assert next(r[0] for r in mmlu) == "base"
    for c in (c for c in against_base(facts) if c.what == "mmlu acc"):
        row = next(r for r in mmlu if r[0] == c.a.label)
        found = estimate(facts, c.a, "mmlu", "acc")
        assert found is not None
        assert row[1] == f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        assert row[3] == difference_text(c)
        assert row[5] == c.verdict
    losses = [float(r[3].split()[0].replace("−", "-")) for r in mmlu[1:]]
    assert losses == sorted(losses)


def test_a_group_has_its_interval_by_subject_and_a_fold_a_recipe() -> None:
    facts = made_facts(["r1", "r9"], {"mmlu": SUBJECTS[:12]}, _score)
    made = drill_down(facts)
    who = {c.recipe: c for c in facts.contenders}
    scores = scores_of(facts, who["r9"], "mmlu", "acc")
    expected = cluster_interval(scores, {d: d.split("/")[0] for d in scores})
    whole = next(r for r in _rows(made) if r[0] == "r9")
    assert whole[1] == f"{expected.value:.3f} [{expected.low:.3f}, {expected.high:.3f}]"
    assert "mmlu, acc · 12 subjects" in made
    # Recipes with the worst loss first, and within each the worst subject.
    folds = re.findall(r"<details><summary>(r\d): worse than base in (\d+) of 12 subjects", made)
    assert [name for name, _ in folds] == ["r9", "r1"]
    subjects = list(_rows(made.split("<summary>r9:")[1].split("</details>")[0]))
    assert len(subjects) == 12
    assert subjects[0][0] in {"s8", "s9", "s10", "s11"}
    values = [float(r[4].split()[0].replace("−", "-")) for r in subjects]
    assert values == sorted(values)


def test_a_subject_is_paired_with_base_and_screened() -> None:
    recipes = ["r1", "r9"]
    facts = made_facts(recipes, {"mmlu": SUBJECTS[:12]}, _score)
    who = {c.recipe: c for c in facts.contenders}
    every = {}
    for name in recipes:
        for subject in SUBJECTS[:12]:
            mine, base = (
                {d: v for d, v in scores_of(facts, who[r], "mmlu", "acc").items() if d.startswith(f"{subject}/")}
                for r in (name, "base")
            )
            every[name, subject] = paired_difference(mine, base)
    adjusted = dict(zip(every, benjamini_hochberg([d.p for d in every.values()]), strict=True))
    body = drill_down(facts).split("<summary>r9:")[1].split("</details>")[0]
    row = next(r for r in _rows(body) if r[0] == "s11")
    difference = every["r9", "mmlu_s11"]
    assert row[1] == "20"
    assert row[4].startswith(f"{difference.value:.3f}".replace("-", "−"))
    assert float(row[5]) == pytest.approx(adjusted["r9", "mmlu_s11"], abs=5e-4)


def test_equal_scores_over_seeds_are_no_loss() -> None:
    def score(recipe: str, task: str, seed: int, document: int) -> float:
        # As many right answers as the base model, spread over seeds and documents so that the means round otherwise.
        return float(document < 7) if recipe == "base" else float((document + 7 * seed) % 20 < 7)

    facts = made_facts(["r1"], {"mmlu": SUBJECTS[:3]}, score, seeds=3)
    made = drill_down(facts)
    assert "r1: worse than base in 0 of 3 subjects</summary>" in made
    assert "e−" not in made


def test_it_stays_small_and_says_what_it_leaves_out() -> None:
    facts = made_facts([f"r{n}" for n in range(40)], {"mmlu": SUBJECTS}, _score, documents=8)
    made = drill_down(facts)
    assert len(made) < 200_000
    assert "Of 40 recipes these are the 20 with the best mean in score." in made
    folds = re.findall(r"<summary>r\d+: worse than base in \d+ of 57 subjects", made)
    assert len(folds) == 20
    assert "42 subjects more, with differences of" in made


def test_a_benchmark_of_one_task_has_no_subjects_and_names_are_text() -> None:
    def score(recipe: str, task: str, seed: int, document: int) -> float:
        return float(recipe == "base")

    made = drill_down(made_facts(["<img src=x>"], {"<b>": ["<b>"], "g": ["g_<i>", "g_y"]}, score))
    assert "<img" not in made
    assert "<b>" not in made
    assert "<i>" not in made
    assert made.count("worse than base in") == 1
    assert "1 recipe resolved to be worse than base" in made


def test_without_benchmarks_it_says_why(store: Store, tmp_path: Path) -> None:
    empty = dict.fromkeys(("trial_events", "measurement_links", "stage_links", "failure_events"), nothing)
    facts: Facts = read_facts(derive(store, tmp_path / "results", empty), SWEEP)
    assert 'class="empty"' in drill_down(facts)
