"""The index of n-grams says what comparing every pair of word runs would say."""

import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import DataSource, load_training_set
from harness.gates._ngrams import COVERED, SHARED, WORDS, NgramIndex, words

TEXT = st.lists(st.sampled_from(string.ascii_lowercase[:2]), max_size=14).map(" ".join)
PARTS = st.lists(TEXT, min_size=1, max_size=2)


def test_words_have_no_case_and_no_punctuation() -> None:
    assert words('"Don\'t, STOP!"  said—the ﬁrst Straße_1.') == [
        "don",
        "t",
        "stop",
        "said",
        "the",
        "first",
        "strasse_1",
    ]


def _runs(text: str) -> set[tuple[str, ...]]:
    own = words(text)
    return {tuple(own[i : i + WORDS]) for i in range(len(own) - WORDS + 1)}


@settings(max_examples=150, deadline=None)
@given(documents=st.lists(PARTS, min_size=1, max_size=6), rows=st.lists(PARTS, max_size=5))
def test_agrees_with_comparing_everything(documents: list[list[str]], rows: list[list[str]]) -> None:
    named = {str(i): parts for i, parts in enumerate(documents)}
    spread = Counter(run for parts in documents for run in set().union(*map(_runs, parts)))
    most = max(2, SHARED * len(documents))
    own = {name: [{r for r in _runs(p) if spread[r] <= most} for p in parts] for name, parts in named.items()}
    expected = {
        name
        for name, parts in own.items()
        for row in (set().union(*map(_runs, texts)) for texts in rows)
        if any(part and len(part & row) >= COVERED * len(part) for part in parts)
    }
    index = NgramIndex({"task": named})
    assert index.find(rows)["task"] == expected
    assert index.too_short["task"] == {name for name, parts in own.items() if not any(parts)}


def _words(count: int, of: str = "w") -> str:
    return " ".join(f"{of}{i}" for i in range(count))


@pytest.mark.parametrize(("kept", "held"), [(17, True), (14, True), (13, False), (8, False)])
def test_seven_tenths_of_the_runs_are_enough(kept: int, held: bool) -> None:
    # Seventeen words are ten runs of eight; the first fourteen words are seven of them.
    index = NgramIndex({"task": {"a": [_words(17)]}})
    assert index.find([[f"so {_words(kept)} then"]]) == {"task": {"a"} if held else set()}


def test_they_must_be_in_one_row_and_no_run_goes_over_a_bound() -> None:
    whole = _words(17).split()
    index = NgramIndex({"task": {"a": [" ".join(whole)]}})
    halves = [" ".join(whole[:12]), " ".join(whole[5:])]
    assert index.find([halves]) == {"task": {"a"}}
    assert index.find([[half] for half in halves]) == {"task": set()}
    assert index.find([[" ".join(whole[:7]), " ".join(whole[7:14]), " ".join(whole[14:])]]) == {"task": set()}
    # Said ten times, one run is one run.
    assert index.find([[" ".join(whole[:8])] * 10]) == {"task": set()}


def test_the_wording_of_the_task_marks_no_document() -> None:
    wording = _words(15)
    index = NgramIndex({"task": {str(i): [f"{wording} {_words(9, f'own{i}x')}"] for i in range(30)}})
    assert index.find([[wording]]) == {"task": set()}
    assert index.find([[f"{wording} {_words(9, 'own7x')}"]]) == {"task": {"7"}}


def test_each_group_has_its_own_documents() -> None:
    index = NgramIndex({"one": {"a": [_words(9)]}, "two": {"a": [_words(30)], "b": ["too short"]}, "none": {}})
    assert index.too_short == {"one": set(), "two": {"b"}, "none": set()}
    assert index.find([[_words(9)]]) == {"one": {"a"}, "two": set(), "none": set()}
    assert index.find([[_words(30)]]) == {"one": {"a"}, "two": {"a"}, "none": set()}


def test_many_rows_are_searched_in_parts() -> None:
    index = NgramIndex({"task": {"a": [_words(20)]}})
    assert index.find([*([["w1 other"]] * 150_000), [_words(20)]]) == {"task": {"a"}}
    assert index.find([]) == {"task": set()}
    assert NgramIndex({}).find([[_words(20)]]) == {}


def test_requests_that_the_bundled_prompts_share_are_next_to_no_overlap() -> None:
    # No question of the test prompts is in training (their README); one of 160 has nearly all its requests in one row.
    rows, _ = load_training_set("prompts", "prompts", DataSource("bundled"), split="test")
    index = NgramIndex({"gold": {str(i): [t["content"] for t in r["prompt"]] for i, r in enumerate(rows)}})
    for name in ("instructions", "preferences", "prompts"):
        trained, _ = load_training_set(name, name, DataSource("bundled"))  # type: ignore[arg-type]  # a kind each
        texts = ([t["content"] for c in row.values() if isinstance(c, list) for t in c] for row in trained)
        assert len(index.find(texts)["gold"]) <= 1
    again = index.find([t["content"] for t in r["prompt"]] for r in rows)["gold"]
    assert len(again) == len(rows) - len(index.too_short["gold"])
    assert len(again) > 0.9 * len(rows)
