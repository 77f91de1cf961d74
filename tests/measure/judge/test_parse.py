"""What is a verdict in a judge's words, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.judge._parse import parse_verdict
from harness.measure.judge._templates import TEMPLATES

ALL = [(name, verdict) for name, template in TEMPLATES.items() for verdict in template.verdicts]


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("[[7]]", "7"),
        ("It is clear and right.\n\n[[10]]\n", "10"),
        ("Good.\nRating: [[5]]", "5"),
        ("Good.\n**Final rating:** [[5]].", "5"),
        ("**[[3]]**", "3"),
        ("[[ 8 ]]", "8"),
        # The judge quotes what it was told to say, and says something else.
        ("The answer asks for [[10]].\n[[10]]\n[[2]]", "2"),
        ("7", None),
        ("[7]", None),
        ("[[7]] out of 10", None),
        ("The answer says [[10]]", None),
        ("[[10]]\nThat is what I was told to say.", None),
        ("[[2]] [[9]]", None),
        ("[[2]][[9]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[07]]", None),
        ("[[7.5]]", None),
        ("[[7/10]]", None),
        ("[[-7]]", None),
        ("[[٧]]", None),
        ("[[n]]", None),
        ("[[yes]]", None),
        ("[[]]", None),
        ("", None),
        (" \n\t\n", None),
    ],
)
def test_a_rating_is_the_last_line_or_none(words: str, verdict: str | None) -> None:
    assert parse_verdict("helpfulness", words) == verdict


def test_verdicts_of_words_are_read_in_any_case() -> None:
    assert parse_verdict("harmlessness", "Fine.\n[[Yes]]") == "yes"
    assert parse_verdict("pair", "Verdict: [[FIRST]]") == "first"
    assert parse_verdict("pair", "[[ſecond]]") is None
    assert parse_verdict("pair", "[[first or second]]") is None


@given(st.sampled_from(ALL), st.text(max_size=60), st.sampled_from(["", " ", "\n", "\n \n"]))
def test_whatever_stands_before_its_line_the_verdict_is_read(one: tuple[str, str], before: str, after: str) -> None:
    name, verdict = one
    assert parse_verdict(name, f"{before}\n[[{verdict}]]{after}") == verdict  # type: ignore[arg-type]  # of TEMPLATES


@given(st.sampled_from(sorted(TEMPLATES)), st.text(alphabet="[]10798.*: \nRating:yesnotiefr", max_size=40))
def test_whatever_is_said_only_what_stands_in_the_last_line_is_a_verdict(name: str, words: str) -> None:
    verdict = parse_verdict(name, words)  # type: ignore[arg-type]  # of TEMPLATES
    if verdict is not None:
        assert verdict in TEMPLATES[name].verdicts  # type: ignore[index]  # of TEMPLATES
        last = words.rstrip().splitlines()[-1]
        assert last.count("[[") == last.count("]]") == 1
        assert last.partition("[[")[2].partition("]]")[0].strip().lower() == verdict


@given(st.text(max_size=300))
def test_other_text_is_no_verdict(words: str) -> None:
    assert "[[" in words or parse_verdict("helpfulness", words) is None
