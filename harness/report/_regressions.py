"""What has become worse than a baseline by more than chance explains: the question of a continuous integration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.report._entries import find_entries
from harness.report._versus import Row, Versus, set_against

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["against_baseline", "regressed"]


def against_baseline(store: "Store", sweep: str, baseline: str) -> Versus:
    """A sweep's recipes against a baseline: recipe by recipe where that is a sweep, else each against the one model.

    Args:
        store: ingested already.
        sweep: the sweep's id; it must have ended.
        baseline: as for `harness compare`.

    Raises:
        UserError: the sweep has not ended, the baseline is unknown or the sweep itself, or nothing can be compared.
    """
    mine, theirs = find_entries(store, [sweep, baseline])
    facts = mine[0].facts
    if facts.state != "complete":
        raise UserError(f"{sweep} is {facts.state}: its figures are not final; end it with `harness sweep` first")
    if theirs[0].facts.sweep == sweep and len(theirs) > 1:
        raise UserError(f"{baseline!r} is the sweep {sweep} itself: give an earlier one as the baseline")
    if len(theirs) == 1:
        # An untrained model may well be worse than a trained one: that is no regression.
        mine = [e for e in mine if not e.who.is_base] or mine
    return set_against(store, [mine, theirs])


def regressed(versus: Versus) -> list[Row]:
    """The rows in which the first is resolved to be worse than the second.

    More is better in every figure but those that the first's suite minimises; KL and the learned reward, which are no
    quality by themselves, count only where they are objectives.
    """
    return [row for row in versus.rows if _worse(row)]


def _worse(row: Row) -> bool:
    objectives: Mapping[str, str] = row.a.facts.objectives
    name = row.what.replace(" ", ".")
    if row.what in ("kl", "rm_reward") and row.what not in objectives:
        return False
    return row.verdict == ("higher" if objectives.get(name) == "minimize" else "lower")
