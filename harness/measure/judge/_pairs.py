"""Which of two models' answers is better: every judge sees them in both orders.

Judges favour an answer for its place (Wang et al. 2023, "Large Language Models are not Fair Evaluators",
arXiv:2305.17926), so a preference counts only where it is the same in both orders; the view `preferences` joins them.
Answers that are equal are asked about too: a judge that goes by the text alone calls them a tie, or contradicts itself
when they change places, which is a tie as well, and shows there what it does for the place alone.

The bundled 135M model cannot do this. On the 54 bundled test pairs that the gold reward tells apart its accuracy is .51
(chance is .50): its verdict is a tie 95 times of 108, and changes with the order for 15 % of the pairs. Nine wordings
and sets of examples, on 48 training pairs, were all at .48 to .51, so the plainest was kept; three of them, with an
answer against its own words shuffled, at .49 to .51 on 32 pairs. A judge to be believed is larger,
and its measured quality stands beside what it says.
"""

from collections.abc import Mapping, Sequence

from harness.errors import UserError
from harness.measure.judge._rows import said, shares_json
from harness.measure.judge._types import UNPARSED, Progress, Question, Verdict, Voter

__all__ = ["measure_pairs"]

Row = dict[str, object]

_SIDES = {"a": {"first": "a", "second": "b", "tie": "tie"}, "b": {"first": "b", "second": "a", "tie": "tie"}}
"""Whose answer stands first → what a verdict means."""


def measure_pairs(
    a_rows: Sequence[Mapping[str, object]],
    b_rows: Sequence[Mapping[str, object]],
    voters: Sequence[Voter],
    a: str,
    b: str,
    limit: int | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Compare the answers that two models gave when they were judged alone.

    Args:
        a_rows: of `judge_votes`, of the measurement `a`; whoever voted, the answer to a document is one.
        b_rows: as `a_rows`, of `b`.
        voters: who compares.
        a: content key of A's judge measurement.
        b: content key of B's.
        limit: prompts at most, of those that both answered in one turn; the same for every pair of models.
        progress: called with (done, total) votes.

    Returns:
        Rows of table `pair_votes` but for `measurement`: one for each prompt of the final half, judge and order.

    Raises:
        UserError: they have answered no final prompt in common, or a judge cannot be asked.
        MeasurementError: a judge gave no answer.
    """
    of_a, of_b = _answers(a_rows), _answers(b_rows)
    # By their hash: a sample that does not depend on the order of rows, nor on who is compared.
    documents = sorted(of_a.keys() & of_b.keys())[:limit]
    if not documents:
        raise UserError(
            "judge.pairwise: the two models have answered no one-turn prompt of the final half in common; raise "
            "measure.judge.limit, or measure both with the same prompts"
        )
    asked = [(document, first) for document in documents for first in _SIDES]
    questions = [_question(of_a[document], of_b[document], first) for document, first in asked]
    total = len(questions) * len(voters)
    found: list[Row] = []

    def told(now: int, _: int) -> None:
        if progress is not None:
            progress(len(found) + now, total)

    for voter in voters:
        verdicts = voter.vote(questions, progress=told)
        for (document, first), verdict in zip(asked, verdicts, strict=True):
            answered = of_a[document]
            row: Row = {
                "document": document,
                "half": "final",
                "a": a,
                "b": b,
                "first": first,
                "category": answered["category"],
                "prompt": answered["prompt"],
                "response_a": answered["response"],
                "response_b": of_b[document]["response"],
            }
            found.append(row | said(voter, verdict) | _decided(verdict, first))
        told(0, total)
    return found


def _answers(rows: Sequence[Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    return {str(row["document"]): row for row in rows if row["half"] == "final" and row["turn"] is None}


def _question(a: Mapping[str, object], b: Mapping[str, object], first: str) -> Question:
    shown = (a, b) if first == "a" else (b, a)
    texts = {"prompt": a["prompt"], "first": shown[0]["response"], "second": shown[1]["response"]}
    return Question("pair", {place: str(text) for place, text in texts.items()})


def _decided(verdict: Verdict, first: str) -> Row:
    sides = _SIDES[first]
    score, probabilities = verdict.score, verdict.probabilities
    if score is not None and first == "b":
        score = 1.0 - score
    return {
        "verdict": UNPARSED if verdict.verdict is None else sides[verdict.verdict],
        "score": score,
        "probabilities": shares_json(probabilities and {sides.get(v, v): p for v, p in probabilities.items()}),
    }
