"""The part of the page about judges: whom they prefer, how they rate, how far they can be believed, what they said."""

from typing import TYPE_CHECKING

from harness.report._document import part
from harness.report._html import Html
from harness.report._judges_diagnostics import diagnostics
from harness.report._judges_people import people
from harness.report._judges_quality import judges_of
from harness.report._judges_ratings import judged_ratings
from harness.report._judges_samples import verdict_browser
from harness.report._judges_wins import judged_wins, strengths, win_rates
from harness.report._queries import Facts
from harness.report._tabs import tabs

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["judges"]

_LEAD = (
    "A judge is a model with its own taste: its figures are worth what it is worth on questions whose answer is known."
)


def judges(store: "Store", facts: Facts, limit: int) -> Html | None:
    """The part, with at most `limit` comparisons in its browser; None where nobody, judge or person, has."""
    rated = people(store, facts)
    if not judges_of(facts) and rated is None:
        return None
    compared = not facts.preferences.is_empty()
    panels = [
        ("Wins", judged_wins(facts) if compared else None),
        ("Win rates", win_rates(facts) if compared else None),
        ("Ranks", strengths(facts) if compared else None),
        ("Ratings", None if facts.votes.is_empty() else judged_ratings(facts)),
        ("How good the judges are", diagnostics(facts) if judges_of(facts) else None),
        ("People", rated),
        ("Verdicts and words", verdict_browser(store, facts, limit) if compared else None),
    ]
    return part("judges", "Judges", _LEAD, tabs("judging", panels))
