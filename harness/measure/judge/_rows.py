"""The columns that every table of votes has."""

import json
from collections.abc import Mapping

from harness.measure.judge._types import Verdict, Voter

__all__ = ["said", "shares_json"]


def said(voter: Voter, verdict: Verdict) -> dict[str, object]:
    """Who voted, what was asked, what was said and paid."""
    return {
        "judge": voter.name,
        "judge_key": voter.key,
        "judge_prompt": verdict.asked,
        "words": verdict.words,
        "cost": verdict.cost,
    }


def shares_json(shares: Mapping[str, float] | None) -> str | None:
    """Probabilities as the store has them."""
    return None if shares is None else json.dumps(dict(shares))
