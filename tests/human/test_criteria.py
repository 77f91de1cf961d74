"""Criteria by name, or with words of one's own at both ends of the scale."""

import pytest

from harness.errors import UserError
from harness.human import CRITERIA, parse_criteria


def test_names_and_words_of_ones_own() -> None:
    known, own = parse_criteria(" honesty , follows_style= plainly not | to the letter ")
    assert known is CRITERIA["honesty"]
    assert (own.name, own.low, own.high) == ("follows_style", "plainly not", "to the letter")
    assert "Follows style" in own.question


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "expected one at least"),
        (" , ", "expected one at least"),
        ("helpfulnes", "did you mean helpfulness"),
        ("helpfulness,helpfulness", "helpfulness stands there twice"),
        ("tone=cold", "name=words at 1|words at 7"),
        ("Tone=cold|warm", "name=words at 1|words at 7"),
        ("tone=cold|warm|hot", "name=words at 1|words at 7"),
        (f"tone={'x' * 61}|warm", "name=words at 1|words at 7"),
    ],
)
def test_what_is_no_criterion_is_refused(given: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_criteria(given)
    assert said in str(caught.value)
