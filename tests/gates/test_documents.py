"""Gates that read a data source: the choices of documents, the few-shot split, and test documents in training data."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from harness.data import DataSource, load_training_set
from harness.gates._evidence import Asked, Evidence, read_evidence
from harness.gates._fewshot import _judge
from harness.gates._types import Flag
from harness.measure._requests import fewshot_of
from harness.measure.tasks import load_tasks
from harness.store import Store
from harness.suite import Task
from tests import cards
from tests.gates.stores import Answer, N, answered, said
from tests.report.stores import derive
from tests.store.scenario import SWEEP

_SHOTS = 8


def _write(folder: Path, files: dict[str, list[dict[str, object]]], readme: str = "") -> None:
    folder.mkdir(parents=True)
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    if readme:
        (folder / "README.md").write_text(readme)


def _question(i: int) -> str:
    """Fifteen words, of which no eight in a row are another question's."""
    return f"Child-{i} had {i} apples and bought {i + 1} more at shop-{i} before lunch; how many now?"


def _letter(i: int) -> dict[str, object]:
    """Half of the documents have four choices, half two."""
    count = 4 if i % 2 else 2
    return {
        "id": str(i),
        "question": f"Pick one of these, number {i}",
        "choices": {"text": [f"option {i}-{k}" for k in range(count)], "label": list("ABCD"[:count])},
        "answerKey": "AB"[i // 2 % 2],
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    folder = tmp_path_factory.mktemp("mirror")
    story = [{"question": _question(i), "answer": f"Adding gives {2 * i + 1}. #### {2 * i + 1}"} for i in range(100)]
    _write(folder / "openai" / "gsm8k", {"train.jsonl": story[60 : 60 + _SHOTS], "test.jsonl": story[:N]}, cards.GSM8K)
    letters = [_letter(i) for i in range(60)]
    _write(folder / "allenai" / "ai2_arc", {"train.jsonl": letters[50:], "test.jsonl": letters[:N]}, cards.ARC)
    # The first eight questions, shouted and with other punctuation, among rows that only share words with the rest.
    seen = [{"instruction": _question(i).upper().replace(" ", " - "), "output": "I know."} for i in range(8)]
    other = [
        {"instruction": f"Child-{i} had apples. Many more apples, before lunch.", "output": "Yes."} for i in range(60)
    ]
    _write(folder / "acme" / "trained", {"train.jsonl": seen + other})
    _write(folder / "acme" / "clean", {"train.jsonl": other})
    return DataSource(str(folder))


@pytest.fixture(scope="module")
def found(evidence: Evidence, source: DataSource) -> Evidence:
    """The healthy sweep with this source."""
    return replace(evidence, source=source, _documents={})


def _renamed(evidence: Evidence, old: str, new: str, **settings: object) -> Evidence:
    def one(a: Asked) -> Asked:
        seeds = {seed: rows.with_columns(pl.lit(new).alias("leaf")) for seed, rows in a.seeds.items()}
        return replace(a, task=new, seeds=seeds, settings={new: settings})

    return replace(evidence, asked=[one(a) if a.task == old else a for a in evidence.asked], _documents={})


def _arc(found: Evidence, source: DataSource, place: int | None, right: int = 28) -> Evidence:
    """ARC's documents; each answered by the choice in this place, or by `right` right answers and then wrong ones."""
    leaf = load_tasks(source, {"arc_easy": Task()})["arc_easy"][0]

    def make(recipe: str, seed: int) -> Iterator[Answer]:
        for i, (name, document) in enumerate(zip(leaf.identities, leaf.documents, strict=True)):
            texts = document["choices"]["text"]  # type: ignore[index]  # as `_letter` makes it
            key = "AB".index(str(document["answerKey"]))
            given = place if place is not None else key if (i * 7) % N < right else 1 - key
            yield name, float(given == key), texts[given], texts[key], "?"

    return _renamed(answered(found, "hellaswag", "acc", make), "hellaswag", "arc_easy", num_fewshot=0)


def test_the_place_of_an_answer_comes_from_the_documents(found: Evidence, source: DataSource) -> None:
    flags, open_ = said(_arc(found, source, 0), "constant choice", "arc_easy")
    assert open_ == []
    assert {(f.severity, f.figures["share"], f.figures["expected"]) for f in flags} == {("invalid", 1.0, 0.5)}
    assert "answers “choice 1” to 40 of 40" in flags[0].message
    assert said(_arc(found, source, None), "constant choice", "arc_easy") == ([], [])
    # Texts of their own cannot be told apart by place without the documents.
    _, open_ = said(replace(_arc(found, source, 0), source=None), "constant choice", "arc_easy")
    assert {u.why for u in open_} == {
        "its choices are not known: no data source was given, and the store does not hold it"
    }


def test_chance_is_of_each_document_by_its_own_number_of_choices(found: Evidence, source: DataSource) -> None:
    # Twenty documents with two choices and twenty with four: (20/2 + 20/4) / 40.
    flags, _ = said(_arc(found, source, None, right=15), "at chance", "arc_easy")
    assert {f.figures["chance"] for f in flags} == {0.375}
    assert {f.figures["value"] for f in flags} == {0.375}
    assert "2 to 4 choices)" in flags[0].message
    assert said(_arc(found, source, None, right=32), "at chance", "arc_easy") == ([], [])


def _stories(evidence: Evidence, source: DataSource, right: dict[str, set[int]]) -> Evidence:
    """Answers to the questions of gsm8k: recipe → the numbers of those that it has right."""
    names = load_tasks(source, {"gsm8k": Task()})["gsm8k"][0].identities

    def make(recipe: str, seed: int) -> Iterator[Answer]:
        for i, document in enumerate(names):
            yield document, float(i in right.get(recipe, ())), f"answer {i}", f"right {i}", "?"

    return answered(evidence, "gsm8k", "exact_match", make)


def _shots(found: Evidence, source: DataSource, shots: int) -> Evidence:
    return _renamed(_stories(found, source, {}), "gsm8k", "gsm8k", num_fewshot=shots)


def test_a_few_shot_split_too_small(found: Evidence, source: DataSource) -> None:
    # Eight examples: nine are more than there are; of two draws of five, two at least are the same; of four, none is.
    (flag,), _ = said(_shots(found, source, 9), "few-shot split", "gsm8k")
    assert (flag.severity, dict(flag.figures)) == ("invalid", {"shots": 9, "split": 8})
    (flag,), _ = said(_shots(found, source, 5), "few-shot split", "gsm8k")
    assert (flag.severity, flag.recipe) == ("warning", "")
    assert "every two prompts share at least 2" in flag.message
    for enough in (4, 0):
        assert said(_shots(found, source, enough), "few-shot split", "gsm8k") == ([], [])


def _task(pool: int, sampler: str = "default", **splits: str) -> SimpleNamespace:
    """As much of an lm-eval task as the gate reads."""
    config = SimpleNamespace(**dict.fromkeys(("test_split", "validation_split", "training_split")) | splits)
    own = SimpleNamespace(split=splits.get("fewshot_split"), samples=None, sampler=sampler)
    return SimpleNamespace(config=config, fewshot_cfg=own, fewshot_docs=lambda: [0] * pool)


@pytest.mark.parametrize(
    ("config", "flagged"),
    [
        ({"validation_split": "validation"}, True),
        ({"validation_split": "validation", "training_split": "train"}, False),
        ({"test_split": "test", "fewshot_split": "test"}, True),
        ({"test_split": "test", "fewshot_split": "dev"}, False),
    ],
)
def test_examples_from_the_measured_documents(found: Evidence, config: dict[str, str], flagged: bool) -> None:
    task = _task(100, **config)
    one = next(a for a in found.asked if a.task == "mmlu")
    flags = list(_judge(one, "task", fewshot_of(task, 5)))
    assert ["the split that is measured" in f.message for f in flags if isinstance(f, Flag)] == [True] * flagged


def test_examples_that_the_task_fixes_are_no_flag(found: Evidence) -> None:
    # MMLU's dev split has five documents of each subject, and 5-shot shows them all.
    task = _task(5, test_split="test", fewshot_split="dev", sampler="first_n")
    one = next(a for a in found.asked if a.task == "mmlu")
    assert list(_judge(one, "task", fewshot_of(task, 5))) == []


@pytest.fixture(scope="module")
def trained(healthy: Store, source: DataSource, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """SFT was on the set with eight of the questions, DPO and PPO (both from it) on nothing else."""
    _, fingerprint = load_training_set("acme/trained", "instructions", source)

    def sets(frame: pl.DataFrame) -> pl.DataFrame:
        sft = pl.col("method") == "sft"
        none = pl.lit(None, dtype=pl.String)
        return frame.with_columns(
            pl.when(sft).then(pl.lit("acme/trained")).otherwise(none).alias("dataset"),
            pl.when(sft).then(pl.lit(fingerprint)).otherwise(none).alias("dataset_fingerprint"),
        )

    return derive(healthy, tmp_path_factory.mktemp("trained") / "results", {"stages": sets})


def _trained(trained: Store, source: DataSource, right: dict[str, set[int]]) -> Evidence:
    evidence = read_evidence(trained, SWEEP, source)
    only = replace(evidence, asked=[a for a in evidence.asked if a.task == "gsm8k"])
    return _renamed(_stories(only, source, right), "gsm8k", "gsm8k", num_fewshot=0)


def test_documents_seen_in_training_with_the_score_without_them(trained: Store, source: DataSource) -> None:
    base = {*range(4), *range(8, 24)}
    # dpo gains on the eight that it was trained on (4 of 8 → 8 of 8) and on none else; ppo on all alike.
    right = {"base": base, "dpo": base | set(range(8)), "ppo": base | {4, 5, *range(24, 32)}}
    flags, open_ = said(_trained(trained, source, right), "contamination")
    assert open_ == []
    of = {f.recipe: f for f in flags}
    assert set(of) == {"dpo", "ppo"}
    figures = of["dpo"].figures
    assert (figures["overlapping"], figures["n"]) == (8, 40)
    assert figures["score"] == pytest.approx(24 / 40)
    assert figures["score_without"] == pytest.approx(16 / 32)
    assert figures["gain"] == pytest.approx(4 / 40)
    assert figures["gain_without"] == 0
    assert of["dpo"].severity == "invalid"
    assert of["ppo"].severity == "warning"
    assert "8 of 40 documents (20%) are in the training data (acme/trained)" in of["dpo"].message
    assert "0.600 on all, 0.500 on the other 32" in of["dpo"].message


def test_training_data_without_the_documents_is_no_flag(healthy: Store, source: DataSource, tmp_path: Path) -> None:
    _, fingerprint = load_training_set("acme/clean", "instructions", source)
    store = derive(
        healthy,
        tmp_path / "results",
        {
            "stages": lambda f: f.filter(pl.col("method") == "sft").with_columns(
                pl.lit("acme/clean").alias("dataset"), pl.lit(fingerprint).alias("dataset_fingerprint")
            )
        },
    )
    whole = {r: set(range(28)) for r in ("base", "dpo", "ppo")}
    assert said(_trained(store, source, whole), "contamination") == ([], [])


def test_rows_that_are_not_those_of_the_training_are_not_taken_for_them(healthy: Store, source: DataSource) -> None:
    # The scenario's fingerprints are of no data at all.
    whole = {r: set(range(28)) for r in ("base", "dpo", "ppo")}
    flags, open_ = said(_trained(healthy, source, whole), "contamination")
    assert flags == []
    assert {u.why.partition(" (")[0].split(" in ")[0] for u in open_} == {
        "the rows of instructions",
        "the rows of preferences",
        "the rows of prompts",
    }
    assert said(read_evidence(healthy, SWEEP), "contamination")[1][0].why.startswith("no data source was given")
