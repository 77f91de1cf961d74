"""Answers compared in pairs, in both orders."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest

from harness.errors import UserError
from harness.measure.judge import LocalVoter, Question, Verdict, measure_pairs
from harness.method import LoadedModel
from harness.store import Store

A, B = "measurement-a", "measurement-b"


def _answer(document: str, response: str, **other: object) -> dict[str, object]:
    row = {"document": document, "half": "final", "turn": None, "category": None, "aspect": "helpfulness"}
    return {**row, "prompt": f"About {document}?", "response": response, **other}


@dataclass
class Rule:
    """A judge that goes by a rule over (first, second)."""

    rule: Callable[[str, str], str | None]
    name: str = "rule"
    key: str = "rules"

    def vote(
        self,
        questions: Sequence[Question],
        keep: Callable[[int, Verdict], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        found = [self.rule(q.texts["first"], q.texts["second"]) for q in questions]
        values = {"first": 1.0, "second": 0.0, "tie": 0.5}
        return [Verdict(v, None if v is None else values[v], "asked", words=f"[[{v}]]", cost=0.5) for v in found]


def _longer(first: str, second: str) -> str:
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


def _both(rows: Sequence[Mapping[str, object]]) -> dict[tuple[object, object], tuple[object, object]]:
    return {(r["document"], r["first"]): (r["verdict"], r["score"]) for r in rows}


def test_both_orders_are_asked_and_read_back_to_a_and_b() -> None:
    a = [_answer("1", "long answer"), _answer("2", "so"), _answer("3", "same"), _answer("3", "same", aspect="other")]
    b = [_answer("1", "short"), _answer("2", "longer"), _answer("3", "same")]
    seen: list[tuple[int, int]] = []
    rows = measure_pairs(a, b, [Rule(_longer)], A, B, progress=lambda *now: seen.append(now))
    assert _both(rows) == {
        ("1", "a"): ("a", 1.0),
        ("1", "b"): ("a", 1.0),
        ("2", "a"): ("b", 0.0),
        ("2", "b"): ("b", 0.0),
        # Equal answers are asked about all the same.
        ("3", "a"): ("tie", 0.5),
        ("3", "b"): ("tie", 0.5),
    }
    assert {(r["a"], r["b"], r["judge"], r["judge_key"], r["cost"]) for r in rows} == {(A, B, "rule", "rules", 0.5)}
    assert [(r["response_a"], r["response_b"]) for r in rows[:2]] == [("long answer", "short")] * 2
    assert seen[-1] == (6, 6)


def test_a_judge_that_goes_by_the_place_contradicts_itself() -> None:
    rows = measure_pairs([_answer("1", "x")], [_answer("1", "y")], [Rule(lambda *_: "first")], A, B)
    assert _both(rows) == {("1", "a"): ("a", 1.0), ("1", "b"): ("b", 0.0)}
    rows = measure_pairs([_answer("1", "x")], [_answer("1", "y")], [Rule(lambda *_: None)], A, B)
    assert _both(rows) == {("1", "a"): ("unparsed", None), ("1", "b"): ("unparsed", None)}


def test_only_final_prompts_of_one_turn_that_both_answered() -> None:
    a = [_answer(str(n), "x") for n in range(6)]
    b = [
        _answer("0", "y", half="tune"),
        _answer("1", "y", turn=1),
        _answer("1", "y", turn=2),
        *(_answer(str(n), "y") for n in (7, 5, 4, 3)),
    ]
    rows = measure_pairs(a, b, [Rule(_longer), Rule(_longer, "other")], A, B)
    assert [r["document"] for r in rows] == ["3", "3", "4", "4", "5", "5"] * 2
    assert [r["document"] for r in measure_pairs(a[::-1], b, [Rule(_longer)], A, B, limit=2)] == ["3", "3", "4", "4"]
    with pytest.raises(UserError, match="no one-turn prompt of the final half in common"):
        measure_pairs(a, b[:3], [Rule(_longer)], A, B)


def test_a_local_judge_and_the_store(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> None:
    a, b = [_answer("1", "A red fruit."), _answer("2", "same")], [_answer("1", "lamp lamp"), _answer("2", "same")]
    rows = measure_pairs(a, b, [LocalVoter(tiny, "tiny", "key")], A, B)
    found = {(r["document"], r["first"]): json.loads(str(r["probabilities"])) for r in rows}
    assert all(set(shares) == {"a", "b", "tie", "mass"} for shares in found.values())
    scores = {place: score for place, (_, score) in _both(rows).items()}
    for place, shares in found.items():
        assert scores[place] == pytest.approx(shares["a"] + shares["tie"] / 2)
    # The same question, read from the other side.
    assert found["2", "a"]["a"] == pytest.approx(found["2", "b"]["b"], rel=1e-3)
    # Changing sides changes nothing but the names.
    turned = {(r["document"], r["first"]): r["score"] for r in measure_pairs(b, a, [LocalVoter(tiny, "t", "k")], B, A)}
    for (document, first), score in turned.items():
        assert 1 - float(str(score)) == pytest.approx(scores[document, "b" if first == "a" else "a"], abs=1e-4)
    store = Store(tmp_path_factory.mktemp("results"))
    store.append("pair_votes", [{"measurement": "m", **row} for row in rows])
    store.ingest()
    assert store.query("SELECT count(*) FROM raw.pair_votes").rows() == [(4,)]
