"""Which places the comparisons of a page leave open to each recipe."""

from dataclasses import dataclass

from harness.report._compare import compare_recipes, objective_source
from harness.report._queries import Facts

__all__ = ["Place", "places"]


@dataclass(frozen=True)
class Place:
    """The rank of a recipe by its mean, 1 for the best, among `of` on its base model; the data leave `low` to `high`
    open."""

    low: int
    rank: int
    high: int
    of: int

    def text(self) -> str:
        """`1 [1, 2] of 3`."""
        return f"{self.rank} [{self.low}, {self.high}] of {self.of}"


def places(facts: Facts, objective: str) -> dict[str, Place]:
    """Label → place, of every recipe that was compared on the objective.

    `low` is 1 + how many others are resolved to be better, `high` the number of recipes less those resolved to be
    worse, all from the one family of comparisons that the answer stands on (Mogstad, Romano, Shaikh & Wilhelm 2024,
    "Inference for ranks"): no place contradicts a verdict.
    """
    key = ("places", objective)
    return facts.once(key, lambda: _places(facts, objective) if objective_source(facts, objective) else {})


def _places(facts: Facts, objective: str) -> dict[str, Place]:
    found = compare_recipes(facts, objective)
    members: dict[str, set[str]] = {}
    for c in found:
        members.setdefault(c.a.model, set()).update((c.a.label, c.b.label))
    places: dict[str, Place] = {}
    for group in members.values():
        # `a` is the one with the better mean.
        mine = [c for c in found if c.a.label in group]
        for label in group:
            behind = [c for c in mine if c.b.label == label]
            before = [c for c in mine if c.a.label == label]
            places[label] = Place(
                low=1 + sum(c.verdict != "unresolved" for c in behind),
                rank=1 + sum(c.difference.value != 0 for c in behind),
                high=len(group) - sum(c.verdict != "unresolved" for c in before),
                of=len(group),
            )
    return places
