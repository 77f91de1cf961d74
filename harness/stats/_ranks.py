"""Ranks with their uncertainty: which places in a table the data leave open to each entry.

Mogstad, Romano, Shaikh & Wilhelm 2024, "Inference for ranks", Review of Economic Studies 91: an entry stands behind
all that are significantly better and before all that are significantly worse; what is not resolved leaves its rank
open.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from harness.errors import UserError
from harness.stats._crossed import paired_difference
from harness.stats._several import holm, resolved
from harness.stats._types import Scores, check_confidence

__all__ = ["RankInterval", "rank_intervals"]


@dataclass(frozen=True)
class RankInterval:
    """The rank of an entry, 1 for the best, and the ranks `low` to `high` that the data leave open to it.

    `rank` counts the entries with a better mean on the documents that both have, equal ones sharing the better rank.
    `compared` is how many others it shares at least two documents with; the rest widen the interval.
    """

    low: int
    rank: int
    high: int
    compared: int
    confidence: float


def rank_intervals(
    scores: Mapping[str, Scores],
    confidence: float = 0.95,
    *,
    minimize: bool = False,
    resamples: int = 4000,
    seed: int = 0,
) -> dict[str, RankInterval]:
    """For each entry the interval of its rank, all of them right at once with this confidence.

    Every two entries are compared on the documents they share (`paired_difference`), the p values are corrected for
    being several (`holm`): `low` is 1 + the number of others that are resolved to be better, `high` the number of
    entries - those resolved to be worse. Ranks are of the entries given: with another among them they are others.

    Args:
        scores: entry → document → score, or scores over its seeds. Entries need not share all documents, but then
            differences are over different documents, and may contradict each other.
        confidence: that no interval misses the entry's true rank.
        minimize: lower is better.
        resamples: bootstrap replicates of each comparison.
        seed: of the resampling; equal input gives equal intervals.

    Raises:
        UserError: no entries, an entry without documents, a ragged number of seeds, a score that is not finite.
    """
    check_confidence(confidence)
    if empty := [name for name, own in scores.items() if not own]:
        raise UserError(f"nothing to rank {empty[0]!r} by: it has no documents")
    if not scores:
        raise UserError("expected at least one entry to rank")
    # Sorted: the answer must not depend on the order in which rows were read.
    pairs, found = [], []
    for a, b in combinations(sorted(scores), 2):
        shared = scores[a].keys() & scores[b].keys()
        if shared:
            first, second = ({d: scores[name][d] for d in shared} for name in (a, b))
            pairs.append((a, b))
            found.append(paired_difference(first, second, confidence, resamples=resamples, seed=seed))
    better, ahead, behind, compared = (dict.fromkeys(scores, 0) for _ in range(4))
    for (a, b), difference, p in zip(pairs, found, holm([d.p for d in found]), strict=True):
        leads = -difference.value if minimize else difference.value
        winner, loser = (a, b) if leads >= 0 else (b, a)
        better[loser] += leads != 0
        if resolved(difference, p, 1 - confidence) != "unresolved":
            ahead[loser] += 1
            behind[winner] += 1
        for name in (a, b):
            compared[name] += difference.n > 1
    return {
        name: RankInterval(1 + ahead[name], 1 + better[name], len(scores) - behind[name], compared[name], confidence)
        for name in scores
    }
