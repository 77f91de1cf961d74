"""A panel of judges over one model's answers."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.data import DataSource, Half
from harness.errors import UserError
from harness.measure._again import pass_tokens
from harness.measure._requests import Requests
from harness.measure.judge import JudgePrompt, LocalVoter, Question, Verdict, judge_fingerprint, measure_judge
from harness.method import LoadedModel
from harness.store import Store
from harness.suite import Judge

BUNDLED = DataSource("bundled")


def judging(**settings: Any) -> Judge:
    return Judge.model_validate({"limit": 4, "max_new_tokens": 4, **settings})


@dataclass
class Clerk:
    """A judge of words that goes by rule, and cannot be understood where an answer is empty."""

    name: str = "clerk"
    key: str = "rules"
    asked: list[Question] = field(default_factory=list)

    def vote(
        self,
        questions: Sequence[Question],
        keep: Callable[[int, Verdict], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        self.asked += questions
        verdicts = []
        for question in questions:
            if not question.texts["response"]:
                verdicts.append(Verdict(None, None, "asked", words="Hm.", cost=0.25))
            else:
                verdicts.append(Verdict("7", 7.0, "asked", words="Fine. [[7]]", cost=0.5))
        if progress is not None:
            progress(len(verdicts), len(verdicts))
        return verdicts


def test_each_bundled_set_is_rated_for_its_aspect(tiny: LoadedModel) -> None:
    seen: list[tuple[int, int]] = []
    panel = [LocalVoter(tiny, "a", "k"), LocalVoter(tiny, "b", "l")]
    rows = measure_judge(tiny, panel, BUNDLED, judging(), ["final"], lambda done, total: seen.append((done, total)))
    assert Counter((r["aspect"], r["judge"], r["judge_key"]) for r in rows) == {
        (aspect, *judge): 2 for aspect in ("helpfulness", "harmlessness") for judge in (("a", "k"), ("b", "l"))
    }
    assert {(r["half"], r["turn"], r["words"], r["cost"]) for r in rows} == {("final", None, None, None)}
    assert seen[-1] == (12, 12)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert all(1 <= float(str(r["score"])) <= 10 for r in rows if r["aspect"] == "helpfulness")
    assert all(0 <= float(str(r["score"])) <= 1 for r in rows if r["aspect"] == "harmlessness")
    assert all("mass" in json.loads(str(r["probabilities"])) for r in rows)
    assert rows == measure_judge(tiny, panel, BUNDLED, judging(), ["final"], lambda *_: None)


def test_two_turns_are_judged_one_by_one(tiny: LoadedModel) -> None:
    clerk = Clerk()
    settings = judging(helpfulness=False, harmlessness=False, multi_turn=True, limit=8)
    told: list[Requests] = []
    seen: list[tuple[int, int]] = []
    rows = measure_judge(
        tiny, [clerk], BUNDLED, settings, ["tune", "final"], lambda *now: seen.append(now), record=told.append
    )
    assert Counter(r["turn"] for r in rows) == {1: 8, 2: 8}
    assert (told[0].generated, seen[-1]) == (16, (32, 32))
    for first, second, q1, q2 in zip(rows[::2], rows[1::2], clerk.asked[::2], clerk.asked[1::2], strict=True):
        assert first["document"] == second["document"]
        assert q1.texts["history"] == ""
        assert q2.texts["history"] == f"User: {first['prompt']}\n\nAssistant: {first['response']}"
        assert (q2.texts["prompt"], q2.texts["response"]) == (second["prompt"], second["response"])
    # What has a right answer is held against it, each turn against its own.
    with_reference = [q for q in clerk.asked if q.template == "multi_turn_reference"]
    assert with_reference
    assert len({q.texts["reference"] for q in with_reference}) > len(with_reference) // 2
    assert {q.template for q in clerk.asked} == {"multi_turn", "multi_turn_reference"}


def test_a_reference_belongs_to_its_turn(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = JudgePrompt(
        (("user", "Six times seven?"),), "Six times seven?", ("multi_turn",), follow_up="Half?", references=("42", "21")
    )
    monkeypatch.setattr("harness.measure.judge._panel.judge_prompts", lambda source, judge: [prompt])
    clerk = Clerk()
    measure_judge(tiny, [clerk], BUNDLED, judging(multi_turn=True), ["tune", "final"], lambda *_: None)
    assert [q.texts["reference"] for q in clerk.asked] == ["42", "21"]


def test_one_answer_serves_every_aspect(tiny: LoadedModel) -> None:
    told: list[Requests] = []
    settings = judging(helpfulness=False, over_refusal=True)
    rows = measure_judge(tiny, [Clerk()], BUNDLED, settings, ["tune", "final"], lambda *_: None, record=told.append)
    aspects: dict[object, dict[object, object]] = {}
    for row in rows:
        aspects.setdefault(row["document"], {})[row["aspect"]] = row["response"]
    both = [found for found in aspects.values() if len(found) == 2]
    assert len(both) == 4
    assert all(found["harmlessness"] == found["over_refusal"] for found in both)
    assert told[0].generated == len(aspects) == 8


def test_votes_again(tiny: LoadedModel) -> None:
    told: list[Requests] = []

    def votes(repeat: int) -> dict[tuple[object, object], dict[str, object]]:
        voter = LocalVoter(tiny, "j", "k", pass_tokens(tiny.model, repeat))
        rows = measure_judge(
            tiny, [voter], BUNDLED, judging(limit=6), ["final"], lambda *_: None, repeat=repeat, record=told.append
        )
        return {(r["document"], r["aspect"]): r for r in rows}

    first, again = votes(0), votes(1)
    assert first.keys() == again.keys()
    assert len({aspect for _, aspect in first}) == 2
    for key, row in first.items():
        assert row["response"] == again[key]["response"]
        assert float(str(row["score"])) == pytest.approx(float(str(again[key]["score"])), abs=1e-4)
    assert told[0] == told[1]
    assert told[0].generated == len(first)


def test_what_was_no_verdict_is_a_row(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = ("One?", "Two?")
    prompts = [JudgePrompt((("user", t),), t, ("helpfulness",), category="sums") for t in texts]
    monkeypatch.setattr("harness.measure.judge._panel.judge_prompts", lambda source, judge: prompts)
    monkeypatch.setattr("harness.measure.judge._panel.answer_turns", lambda *_, **__: [("",), ("Three.",)])
    rows = measure_judge(tiny, [Clerk()], BUNDLED, judging(), ["tune", "final"], lambda *_: None)
    assert [(r["verdict"], r["score"], r["words"], r["cost"], r["category"]) for r in rows] == [
        ("unparsed", None, "Hm.", 0.25, "sums"),
        ("7", 7.0, "Fine. [[7]]", 0.5, "sums"),
    ]
    store = Store(tmp_path_factory.mktemp("results"))
    store.append("judge_votes", [{"measurement": "m", **row} for row in rows])
    store.ingest()
    kept = store.query("SELECT verdict, score FROM raw.judge_votes ORDER BY verdict").rows()
    assert kept == [("7", 7.0), ("unparsed", None)]


def test_the_fingerprint_follows_what_decides_the_votes() -> None:
    base = judge_fingerprint(BUNDLED, Judge())
    assert base == judge_fingerprint(BUNDLED, Judge(model="self"))
    others: list[dict[str, object]] = [
        {"limit": 31},
        {"max_new_tokens": 8},
        {"harmlessness": False},
        {"over_refusal": True},
        {"multi_turn": True},
    ]
    assert len({base, *(judge_fingerprint(BUNDLED, Judge.model_validate(o)) for o in others)}) == 6


def test_no_prompt_in_the_half_is_said(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = JudgePrompt((("user", "One?"),), "One?", ("helpfulness",))
    monkeypatch.setattr("harness.measure.judge._panel.judge_prompts", lambda source, judge: [prompt])
    other: Half = "tune" if prompt.half == "final" else "final"
    with pytest.raises(UserError, match="raise the limit"):
        measure_judge(tiny, [Clerk()], BUNDLED, judging(), [other], lambda *_: None)
