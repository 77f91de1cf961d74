"""How often a sweep declares a winner where there is none: a simulation of tuning, choosing and comparing.

    python -m benchmarks.false_winners [--sweeps 1000]

No setting of any recipe is truly better than another. A document has a difficulty, every trained model its own luck on
each document and a luck of its seed overall, and each answer is right or wrong. Every recipe is tuned on the tuning
documents, its best setting is trained again with other seeds and answers the final documents, and all pairs are
compared as the report does (`paired_difference`, then `holm`). Beside that stands what would have been declared without
correction: from the final scores, and from the tuning scores that the settings were chosen by. No model is run. Exits
with 1 where the share of sweeps with a false winner in the report is above 5 % with confidence.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from harness.stats import Difference, Interval, Scores, holm, paired_difference, resolved, wilson

__all__ = ["Setup", "false_winners", "main"]

_LEVEL = 0.05

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Setup:
    """What is simulated; spreads are standard deviations on the scale of the logit."""

    recipes: int = 8
    trials: int = 8
    tuning: int = 100
    final: int = 100
    seeds: int = 2
    difficulty: float = 1.5
    luck: float = 1.0
    seed_spread: float = 0.1


def _answers(setup: Setup, documents: int, models: int, seeds: int, random: np.random.Generator) -> _Array:
    """Right (1) or wrong (0), shape (models, documents, seeds); models share the documents and nothing else."""
    logit = (
        random.normal(0, setup.difficulty, (1, documents, 1))
        + random.normal(0, setup.luck, (models, documents, 1))
        + random.normal(0, setup.seed_spread, (models, 1, seeds))
    )
    right: _Array = (random.random((models, documents, seeds)) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    return right


def _pairs(tables: Sequence[_Array]) -> list[Difference]:
    sides: list[Scores] = [{str(i): row.tolist() for i, row in enumerate(table)} for table in tables]
    return [paired_difference(a, b) for a, b in combinations(sides, 2)]


def _sweep(setup: Setup, random: np.random.Generator) -> tuple[bool, bool, bool]:
    """Whether a winner is declared: by the report, by final scores uncorrected, by tuning scores uncorrected."""
    tuned = []
    trials = _answers(setup, setup.tuning, setup.recipes * setup.trials, 1, random)
    for own in np.split(trials, setup.recipes):
        tuned.append(own[int(own.mean(axis=(1, 2)).argmax())])
    # The luck of a chosen setting on the tuning documents says nothing of other documents: final answers are fresh.
    found = _pairs(list(_answers(setup, setup.final, setup.recipes, setup.seeds, random)))
    adjusted = holm([d.p for d in found])
    reported = any(resolved(d, p) != "unresolved" for d, p in zip(found, adjusted, strict=True))
    final, tuning = (any(resolved(d) != "unresolved" for d in pairs) for pairs in (found, _pairs(tuned)))
    return reported, final, tuning


def false_winners(setup: Setup, sweeps: int, seed: int = 0) -> tuple[Interval, Interval, Interval]:
    """The share of sweeps with any false winner: in the report, by final and by tuning scores without correction.

    Args:
        setup: what is simulated.
        sweeps: how many sweeps are.
        seed: of the simulation.
    """
    random = np.random.default_rng(seed)
    found = [_sweep(setup, random) for _ in range(sweeps)]
    reported, final, tuning = (wilson(sum(column), sweeps) for column in zip(*found, strict=True))
    return reported, final, tuning


def main() -> int:
    """Print a row for every spread between seeds; 1 where the report's share is above the level for sure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps of each row")
    parser.add_argument("--documents", type=int, default=100, help="tuning documents, and as many final ones")
    parser.add_argument("--seeds", type=int, default=2, help="final seeds")
    parser.add_argument(
        "--spread", type=float, nargs="+", default=[0.0, 0.1, 0.3, 1.0], help="between seeds, in logits: one row each"
    )
    asked = parser.parse_args()
    first = Setup()
    print(
        f"{first.recipes} recipes, {first.trials} trials each, {asked.documents} tuning and final documents, "
        f"{asked.seeds} final seeds, {asked.sweeps} sweeps a row: the share with any false winner [95 %]"
    )
    print(f"{'seed spread':>12}  {'the report':>20}  {'final, uncorrected':>22}  {'tuning, uncorrected':>22}")
    above = False
    for spread in asked.spread:
        setup = Setup(tuning=asked.documents, final=asked.documents, seeds=asked.seeds, seed_spread=spread)
        reported, final, tuning = false_winners(setup, asked.sweeps)
        print(f"{spread:>12}  {_words(reported):>20}  {_words(final):>22}  {_words(tuning):>22}", flush=True)
        above |= reported.low > _LEVEL
    return int(above)


def _words(share: Interval) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


if __name__ == "__main__":
    raise SystemExit(main())
