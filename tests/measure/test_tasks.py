"""Benchmark tasks on a small mirror in the hub's layout: what is refused, which documents are scored, and the rows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from harness.data import DataSource
from harness.errors import MeasurementError, UserError
from harness.measure.tasks import leaf_tasks, load_tasks, measure_tasks, task_fingerprint, task_problem
from harness.method import LoadedModel
from harness.models import load_model
from tests import cards


@dataclass(frozen=True)
class _Settings:
    num_fewshot: int | None = None
    limit: int | None = None
    max_gen_toks: int | None = None


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Arrow files go where the test run's other files go; the listing of tasks is read once for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _write(folder: Path, files: dict[str, list[dict[str, object]]], readme: str | None = None) -> None:
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    if readme:
        (folder / "README.md").write_text(readme)


def _question(subject: str, n: int) -> dict[str, object]:
    choices = [str(n), str(n + 1), str(n + 2), str(n + 3)]
    return {"question": f"What is {n} + 1 in {subject}?", "subject": subject, "choices": choices, "answer": 1}


_MMLU = """---
configs:
- config_name: anatomy
  data_files:
  - {split: test, path: anatomy/test.jsonl}
  - {split: dev, path: anatomy/dev.jsonl}
- config_name: sociology
  data_files:
  - {split: test, path: sociology/test.jsonl}
  - {split: dev, path: sociology/dev.jsonl}
---
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    folder = tmp_path_factory.mktemp("mirror")
    for subject in ("anatomy", "sociology"):
        # The last document stands twice.
        test = [_question(subject, n) for n in range(11)] + [_question(subject, 10)]
        dev = [_question(subject, n) for n in range(50, 55)]
        _write(folder / "cais" / "mmlu" / subject, {"test.jsonl": test, "dev.jsonl": dev})
    (folder / "cais" / "mmlu" / "README.md").write_text(_MMLU)
    story = [{"question": f"Ann has {n} apples.", "answer": f"She has {n}.\n#### {n}"} for n in range(20)]
    _write(folder / "openai" / "gsm8k", {"train.jsonl": story[:8], "test.jsonl": story[8:]}, cards.GSM8K)
    ending = {"activity_label": "A", "ctx_a": "x", "ctx_b": "y", "endings": ["a", "b", "c", "d"], "label": "1"}
    _write(folder / "Rowan" / "hellaswag" / "data", {"validation.jsonl": [ending]})
    return DataSource(str(folder))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model)


def test_what_a_source_lacks_is_said_without_a_model(source: DataSource) -> None:
    assert task_problem(source, "mmlu_anatomy") is None
    assert task_problem(source, "gsm8k") is None
    problem = task_problem(source, "mmlu")
    assert problem is not None
    for part in ("54 more of its 57", "available here: mmlu_anatomy, mmlu_sociology", "--data hub"):
        assert part in problem
    assert "no dataset allenai/ai2_arc" in str(task_problem(source, "arc_easy"))
    assert "no split train of Rowan/hellaswag" in str(task_problem(source, "hellaswag"))
    assert "did you mean hellaswag" in str(task_problem(source, "hellswag"))
    assert "no such folder" in str(task_problem(DataSource("/nowhere"), "gsm8k"))
    assert task_problem(DataSource("hub"), "mmlu") is None


def test_settings_that_do_not_fit_are_refused(source: DataSource) -> None:
    assert "fixes num_fewshot" in str(task_problem(DataSource("hub"), "truthfulqa_mc2", _Settings(num_fewshot=5)))
    assert "generates nothing" in str(task_problem(source, "mmlu_anatomy", _Settings(max_gen_toks=5)))
    assert "perplexity" in str(task_problem(DataSource("hub"), "wikitext"))
    with pytest.raises(UserError, match="5 documents"):
        load_tasks(source, {"mmlu_anatomy": _Settings(num_fewshot=6)})
    with pytest.raises(UserError, match="available here"):
        load_tasks(source, {"mmlu": _Settings()})


def test_groups_and_tags_have_leaves() -> None:
    assert len(leaf_tasks("mmlu")) == 57
    assert leaf_tasks("gsm8k") == ["gsm8k"]
    with pytest.raises(UserError, match="no task"):
        leaf_tasks("nonsense")


def test_the_fingerprint_follows_documents_and_prompts(source: DataSource) -> None:
    def of(**settings: int) -> dict[str, object]:
        return task_fingerprint(source, "gsm8k", _Settings(**settings))["gsm8k"]

    assert of() == of(num_fewshot=5)
    assert of(limit=3)["documents"] != of()["documents"]
    assert of(num_fewshot=2)["fewshot"] == of()["fewshot"]
    assert of(num_fewshot=2) != of()
    assert of(num_fewshot=0)["fewshot"] != of()["fewshot"]
    assert of(max_gen_toks=7)["generation"] != of()["generation"]
    assert of(limit=3)["n"] == 3


@pytest.mark.parametrize("scorer", ["prefix-tree", "hf"])
def test_rows_of_each_document_and_metric(source: DataSource, loaded: LoadedModel, scorer: str) -> None:
    tasks = {
        "mmlu_anatomy": _Settings(num_fewshot=2),
        "mmlu_sociology": _Settings(limit=4),
        "gsm8k": _Settings(limit=5, num_fewshot=1, max_gen_toks=6),
    }
    done: list[tuple[int, int]] = []
    found = measure_tasks(
        loaded,
        source,
        tasks,
        ["tune", "final"],
        scorer,
        progress=lambda n, of: done.append((n, of)),  # type: ignore[arg-type]
    )
    assert {n: len(r) for n, r in found.items()} == {"mmlu_anatomy": 12, "mmlu_sociology": 4, "gsm8k": 10}
    assert {r["metric"] for r in found["gsm8k"]} == {"exact_match_strict", "exact_match_flexible"}
    assert len({r["document"] for r in found["mmlu_anatomy"]}) == 12
    for row in found["mmlu_anatomy"]:
        assert row["response"] in {"A", "B", "C", "D"}
        assert row["expected"] == "B"
        assert row["score"] == float(row["response"] == "B")
        assert str(row["prompt"]).count("Answer:") == 3
    for row in found["gsm8k"]:
        assert "####" in str(row["expected"])
        # Six tokens of this tokenizer cannot be longer.
        assert len(loaded.tokenizer(str(row["response"]))["input_ids"]) <= 12
    assert done[-1][0] == done[-1][1]


def test_halves_are_disjoint_and_complete(source: DataSource, loaded: LoadedModel) -> None:
    tasks = {"mmlu_anatomy": _Settings(num_fewshot=1), "mmlu_sociology": _Settings(limit=1)}

    def scores(*halves: str) -> dict[tuple[str, str], float]:
        found = measure_tasks(loaded, source, tasks, halves)  # type: ignore[arg-type]
        assert set(found) == set(tasks)
        assert {r["half"] for rows in found.values() for r in rows} <= set(halves)
        return {(n, str(r["document"])): float(str(r["score"])) for n, rows in found.items() for r in rows}

    tune, final = scores("tune"), scores("final")
    assert not tune.keys() & final.keys()
    assert tune | final == scores("tune", "final")
    assert sum(n == "mmlu_sociology" for n, _ in (tune | final)) == 1
    halves = {
        d: h
        for leaf in load_tasks(source, tasks)["mmlu_anatomy"]
        for d, h in zip(leaf.identities, leaf.halves, strict=True)
    }
    assert {d for n, d in tune if n == "mmlu_anatomy"} == {d for d, h in halves.items() if h == "tune"}


@pytest.mark.parametrize("scorer", ["prefix-tree", "hf"])
def test_scored_in_parts_every_prompt_and_score_is_the_same(
    source: DataSource, loaded: LoadedModel, scorer: str
) -> None:
    # GSM8K draws its examples at random, document after document; MMLU shows the first ones.
    tasks = {"gsm8k": _Settings(num_fewshot=2, max_gen_toks=4), "mmlu_anatomy": _Settings(num_fewshot=2)}
    whole = measure_tasks(loaded, source, tasks, ["tune", "final"], scorer)  # type: ignore[arg-type]
    looks: list[dict[str, set[object]]] = []
    parts = measure_tasks(
        loaded,
        source,
        tasks,
        ["tune", "final"],
        scorer,  # type: ignore[arg-type]
        at=(0.25, 0.5),
        look=lambda _, rows: looks.append({n: {r["document"] for r in found} for n, found in rows.items()}),
    )

    def by_document(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        return sorted(rows, key=lambda r: (str(r["document"]), str(r["metric"])))

    assert len({r["prompt"] for r in whole["gsm8k"]}) == 12
    for name in tasks:
        assert by_document(parts[name]) == by_document(whole[name])
        in_order = sorted({str(r["document"]) for r in whole[name]})
        assert [seen[name] for seen in looks] == [set(in_order[:3]), set(in_order[:6])]


def test_documents_of_the_other_half_are_not_shown_to_the_model(
    source: DataSource, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.measure.scoring import PrefixTreeLM

    seen: list[str] = []
    whole = PrefixTreeLM.loglikelihood

    def watched(self: PrefixTreeLM, requests: list[object], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        seen.extend(r.args[0] for r in requests)  # type: ignore[attr-defined]
        return whole(self, requests, disable_tqdm)  # type: ignore[arg-type]

    monkeypatch.setattr(PrefixTreeLM, "loglikelihood", watched)
    found = measure_tasks(loaded, source, {"mmlu_anatomy": _Settings()}, ["tune"])
    assert set(seen) == {r["prompt"] for r in found["mmlu_anatomy"]}
    (leaf,) = load_tasks(source, {"mmlu_anatomy": _Settings()})["mmlu_anatomy"]
    hidden = [d for d, h in zip(leaf.documents, leaf.halves, strict=True) if h == "final"]
    assert hidden
    assert not any(str(d["question"]) in text for d in hidden for text in seen)


@pytest.mark.parametrize("scorer", ["prefix-tree", "hf"])
def test_a_model_of_nans_fails_and_is_not_perfect(source: DataSource, tiny_model: Path, scorer: str) -> None:
    broken = load_model(tiny_model)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(MeasurementError, match=r"broken|nan"):
        measure_tasks(broken, source, {"mmlu_anatomy": _Settings()}, ["tune", "final"], scorer)  # type: ignore[arg-type]


def test_official_documents_give_the_same_scores_as_hf(shared_data: Path, loaded: LoadedModel) -> None:
    source = DataSource(str(shared_data))
    assert task_problem(source, "mmlu") is None
    tasks = {
        "mmlu_anatomy": _Settings(limit=6, num_fewshot=1),
        "hellaswag": _Settings(limit=10),
        "truthfulqa_mc2": _Settings(limit=3),
        "gsm8k": _Settings(limit=3, num_fewshot=1, max_gen_toks=12),
    }
    ours, theirs = (measure_tasks(loaded, source, tasks, ["tune", "final"], s) for s in ("prefix-tree", "hf"))  # type: ignore[arg-type]
    assert {n: len(r) for n, r in ours.items()} == {"mmlu_anatomy": 6, "hellaswag": 20, "truthfulqa_mc2": 3, "gsm8k": 6}
    for name, rows in ours.items():
        for row, right in zip(rows, theirs[name], strict=True):
            assert row == {**right, "score": pytest.approx(right["score"], abs=1e-3)}


def test_a_model_that_cannot_share_tokens_is_noted(source: DataSource, tiny_model: Path) -> None:
    loaded = load_model(tiny_model)
    said: list[str] = []
    task = {"mmlu_anatomy": _Settings(limit=2)}
    rows = measure_tasks(loaded, source, task, ["tune", "final"], note=said.append)
    assert said == []
    loaded.model._supports_attention_backend = False
    again = measure_tasks(loaded, source, task, ["tune", "final"], note=said.append)
    assert said == ["its attention cannot be replaced"]
    assert [r["score"] for r in again["mmlu_anatomy"]] == pytest.approx([r["score"] for r in rows["mmlu_anatomy"]])
