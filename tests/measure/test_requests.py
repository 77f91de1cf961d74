"""What a measurement records of its requests, and what a repeat does otherwise: batches and random numbers alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.data import DataSource
from harness.measure._requests import Requests
from harness.measure.gold import measure_gold
from harness.measure.tasks import measure_tasks
from harness.method import LoadedModel
from harness.models import load_model
from tests import cards


@dataclass(frozen=True)
class _Settings:
    num_fewshot: int | None = None
    limit: int | None = None
    max_gen_toks: int | None = None


@dataclass(frozen=True)
class _Gold:
    limit: int | None = None
    max_new_tokens: int = 8
    temperature: float = 1.0
    batch_size: int = 4
    seed: int = 0


WINDOW = 512
PROMPTS = [
    {
        "prompt": [{"role": "user", "content": f"Tell me about the number {n}. Use at most {n + 3} words."}],
        "constraints": json.dumps([{"kind": "max_words", "value": n + 3}, {"kind": "no_comma"}]),
    }
    for n in range(12)
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Arrow files go where the test run's other files go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _write(folder: Path, readme: str, **files: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(readme)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def _letter(i: int) -> dict[str, object]:
    """Documents 0 and 5 have three choices, the others four."""
    count = 3 if i in (0, 5) else 4
    return {
        "id": str(i),
        "question": f"Pick one of these, number {i}",
        "choices": {"text": [f"option {i}-{k}" for k in range(count)], "label": list("ABCD"[:count])},
        "answerKey": "A",
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    folder = tmp_path_factory.mktemp("mirror")
    # Document 3 is longer than the window, in words of one token each.
    story = [
        {"question": " ".join(["a"] * (600 if i == 3 else 8)) + f" {i}", "answer": f"It is {i}. #### {i}"}
        for i in range(20)
    ]
    _write(folder / "openai" / "gsm8k", cards.GSM8K, train=story[12:], test=story[:12])
    _write(
        folder / "allenai" / "ai2_arc",
        cards.ARC,
        train=[_letter(i) for i in range(20, 26)],
        test=list(map(_letter, range(10))),
    )
    return DataSource(str(folder))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model)


TASKS = {"gsm8k": _Settings(num_fewshot=2, max_gen_toks=6), "arc_easy": _Settings()}


@pytest.mark.parametrize("scorer", ["prefix-tree", "hf"])
@pytest.mark.parametrize("at", [(), (0.5,)])
def test_what_a_task_records(source: DataSource, loaded: LoadedModel, scorer: str, at: tuple[float, ...]) -> None:
    found: dict[str, Requests] = {}
    rows = measure_tasks(
        loaded,
        source,
        TASKS,
        ["tune", "final"],
        scorer,  # type: ignore[arg-type]  # one of the two
        at=at,
        record=found.__setitem__,
    )
    story, letters = found["gsm8k"], found["arc_easy"]
    assert (story.requests, story.truncated, story.generated) == (12, 1, 12)
    long = max((str(r["prompt"]) for r in rows["gsm8k"]), key=len)
    assert story.most_cut == len(loaded.tokenizer(long)["input_ids"]) - (WINDOW - 6)
    if scorer == "hf":
        assert story.at_limit is None
    else:
        # Six tokens of a random model: hardly any ends by itself.
        assert story.at_limit is not None
        assert 6 <= story.at_limit <= 12
    assert (story.num_fewshot, story.fewshot_pool, story.fewshot_split) == (2, 8, "train")
    assert (story.fewshot_fixed, story.fewshot_measured) == (False, False)
    assert (story.choices, story.other_choices) == (None, None)
    assert (letters.requests, letters.truncated, letters.most_cut) == (38, 0, 0)
    assert (letters.generated, letters.at_limit, letters.num_fewshot, letters.choices) == (0, 0, 0, 4)
    documents = dict.fromkeys(str(r["document"]) for r in rows["arc_easy"])
    assert letters.other_choices == {d: 3 for i, d in enumerate(documents) if i in (0, 5)}


def test_log_likelihoods_cut_at_the_window_are_counted(source: DataSource, loaded: LoadedModel) -> None:
    found: dict[str, Requests] = {}
    tasks = {"arc_easy": _Settings(num_fewshot=6)}
    whole = loaded.model.config.max_position_embeddings
    loaded.model.config.max_position_embeddings = 100
    try:
        rows = measure_tasks(loaded, source, tasks, ["tune", "final"], record=found.__setitem__)
    finally:
        loaded.model.config.max_position_embeddings = whole
    assert found["arc_easy"].truncated == found["arc_easy"].requests == 38
    longest = max(len(loaded.tokenizer(str(r["prompt"]))["input_ids"]) for r in rows["arc_easy"])
    # A choice has some tokens more than its prompt.
    assert longest - 100 < found["arc_easy"].most_cut < longest - 100 + 20


@pytest.mark.parametrize("scorer", ["prefix-tree", "hf"])
def test_a_repeat_asks_the_same_and_scores_the_same(source: DataSource, loaded: LoadedModel, scorer: str) -> None:
    # Greedy and in fp32: other batches change nothing but the last digits.
    first, again = (
        measure_tasks(loaded, source, TASKS, ["tune", "final"], scorer, repeat=repeat)  # type: ignore[arg-type]
        for repeat in (0, 1)
    )
    same = ("document", "metric", "prompt", "expected", "response", "score")
    for task in TASKS:
        assert sorted([r[c] for c in same] for r in first[task]) == sorted([r[c] for c in same] for r in again[task])


def test_a_repeat_meets_in_other_batches(
    source: DataSource, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.measure.scoring import Engine

    batches: list[tuple[int, int]] = []
    score = Engine.score

    def seen(self: Engine, pairs, progress=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  # as the method
        batches.append((len(pairs), self.budget.tokens))
        return score(self, pairs, progress)

    monkeypatch.setattr(Engine, "score", seen)
    for repeat in (0, 1):
        measure_tasks(loaded, source, {"arc_easy": _Settings()}, ["tune", "final"], repeat=repeat)
    (whole, tokens), *parts = batches
    assert whole == 38
    assert len(parts) == 2
    assert sum(n for n, _ in parts) == whole
    assert {t for _, t in parts} == {tokens * 3 // 4}


def _texts(rows: list[dict[str, object]], metric: str = "gold_reward") -> dict[object, object]:
    return {r["document"]: r["response"] for r in rows if r["metric"] == metric}


def test_a_sampled_answer_is_drawn_anew_and_a_greedy_one_is_the_same(loaded: LoadedModel) -> None:
    def of(temperature: float, repeat: int) -> dict[object, object]:
        settings = _Gold(temperature=temperature)
        return _texts(measure_gold(loaded, PROMPTS, None, loaded, settings, ["tune", "final"], repeat=repeat))

    sampled = of(1.0, 0), of(1.0, 1)
    assert sampled[0].keys() == sampled[1].keys()
    assert sum(sampled[0][d] != sampled[1][d] for d in sampled[0]) > 6
    assert of(1.0, 1) == sampled[1]
    assert of(0.0, 0) == of(0.0, 1)


def test_what_the_gold_measure_records(loaded: LoadedModel) -> None:
    told: list[Requests] = []
    rows = measure_gold(loaded, PROMPTS, None, loaded, _Gold(), ["tune", "final"], record=told.append)
    (asked,) = told
    lengths = [r["score"] for r in rows if r["metric"] == "length"]
    assert (asked.requests, asked.generated, asked.truncated) == (12, 12, 0)
    assert asked.at_limit is not None
    # One that ends with the very last token has that length too.
    assert asked.at_limit <= lengths.count(8.0)
    assert asked.at_limit >= lengths.count(8.0) - 2
