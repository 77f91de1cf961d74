"""The gold reward: each constraint by hand, and properties that hold for any text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.gold import CONSTRAINT_KINDS, describe, gold_reward, parse_constraints


@pytest.mark.parametrize(
    ("kind", "value", "response", "score"),
    [
        ("max_words", 4, "one two three four", 1.0),
        ("max_words", 4, "one two three four five six", 0.5),
        ("min_words", 8, "one two three four", 0.5),
        ("include", "honey", "Bees make Honey, as you know.", 1.0),
        ("include", "honey", "The honeymoon was fine.", 0.0),
        ("end_with", "Done.", "That is it. Done. \n", 1.0),
        ("end_with", "Done.", "Done. That is it.", 0.0),
        ("start_with", "Sure:", "Sure: that is easy", 1.0),
        ("lowercase", None, "all of it is small", 1.0),
        ("lowercase", None, "Not all of it", 0.0),
        ("bullets", 2, "- one thing\n- another thing", 1.0),
        ("bullets", 2, "- one thing\n- another\n- a third", 0.5),
        ("bullets", 2, "one thing\n- another", 0.0),
        ("no_comma", None, "no comma here", 1.0),
        ("no_comma", None, "a comma, here", 0.0),
        ("formal", None, "It is not difficult.", 1.0),
        ("formal", None, "It isn't difficult.", 0.0),
    ],
)
def test_constraints_by_hand(kind: str, value: object, response: str, score: float) -> None:
    assert gold_reward(response, [{"kind": kind, "value": value}]) == pytest.approx(score)


def test_the_reward_is_the_mean_and_saying_nothing_earns_nothing() -> None:
    asked = [{"kind": "no_comma", "value": None}, {"kind": "end_with", "value": "Done."}]
    assert gold_reward("this has no comma", asked) == 0.5
    assert gold_reward("Done.", asked) == 0.0
    assert gold_reward("", asked) == 0.0


@given(st.text(), st.sampled_from(sorted(CONSTRAINT_KINDS)), st.integers(1, 40))
def test_any_text_scores_between_zero_and_one(text: str, kind: str, value: int) -> None:
    assert 0.0 <= gold_reward(text, [{"kind": kind, "value": value}]) <= 1.0
    assert describe({"kind": kind, "value": value})


@pytest.mark.parametrize("text", ["[]", "{}", '[{"kind": "rhyme"}]', '"x"', "[1]"])
def test_unknown_constraints_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="constraints"):
        parse_constraints(text)
    with pytest.raises(ValueError, match="at least one"):
        gold_reward("some text here", [])
    assert parse_constraints(json.dumps([{"kind": "lowercase", "value": None}]))
