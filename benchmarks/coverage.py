"""How often nominal 95 % intervals hold the truth, and what pairing is worth: a simulation with a known truth.

    python -m benchmarks.coverage [--draws 1000] [--only cluster_interval]

Answers are right or wrong. Behind each stands a normal latent value, made of the document's difficulty (shared by the
models compared), the training seed and noise; it is right below a threshold. Thresholds vary between groups as a Beta
distribution does, with the intraclass correlation shown, and half as much in common between two models. The mean over
documents, groups and seeds is exactly the probability shown.

Realistic, and judged, is a setting with

- 100 documents or more: what a benchmark has;
- 5 right and 5 wrong answers or more to be expected of each model, counted in independent documents: groups of m alike
  to the degree icc are worth n / (1 + (m - 1) · icc). With fewer the count takes a handful of values, and no interval
  keeps its level (Brown, Cai & DasGupta 2001, "Interval estimation for a binomial proportion", Statistical Science 16);
- no groups, or ten or more with an icc of up to 0.1: with 100 documents a group that makes standard errors 3.3 times as
  large, and Miller (2024, "Adding error bars to evals", arXiv 2411.00640) found them up to over three times as large;
- one seed, or two to five that vary: by 0.003 of the latent variance (2 points of accuracy at 0.5) to 0.03 (7 points).

All else is an extreme: printed, not judged. Outside 93-97 % is marked "low" or "high"; in capitals where the setting is
realistic and the coverage outside by more than the Monte Carlo error (95 %, Wilson). The exit status is 1 where a mark
is in capitals. Two seeds are judged from below only: one degree of freedom cannot tell a small variance over seeds from
a large one, so that what is wide enough for the large is too wide for the small.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from harness.stats import (
    Difference,
    Interval,
    cluster_difference,
    cluster_interval,
    crossed_interval,
    paired_difference,
    wilson,
)

__all__ = ["INTERVALS", "Setting", "coverage", "main", "mark", "power", "settings"]

_DIFFICULTY = 0.6
"""Share of the latent variance that is the document's."""
_GAP = 0.05
"""What b is better or worse by, where the difference is not zero."""

_SEEDS = ((2, 0.003), (2, 0.03), (3, 0.003), (3, 0.03), (5, 0.01))
"""Seeds, and the share of the latent variance that is theirs."""
_LEAST, _MOST = 0.93, 0.97
"""What the coverage of a nominal 95 % interval may be."""

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """`groups` 0: none. `seed_share`: of the latent variance; 0.003 is 2 points of accuracy at 0.5."""

    p: float
    n: int
    groups: int = 0
    icc: float = 0.0
    unequal: bool = False
    seeds: int = 1
    seed_share: float = 0.0
    gap: float = 0.0

    @property
    def other(self) -> float:
        """The probability of the other model."""
        return self.p + self.gap if self.p <= 0.5 else self.p - self.gap

    @property
    def realistic(self) -> bool:
        """Whether the setting is one to be judged by (see the module)."""
        sizes = np.bincount(self.members())
        independent = self.n / (1 + (float(sizes @ sizes) / self.n - 1) * self.icc)
        rarest = min(self.p, 1 - self.p, self.other, 1 - self.other)
        return (
            self.n >= 100
            and independent * rarest >= 5
            and (not self.groups or (self.groups >= 10 and self.icc <= 0.1))
            and (self.seeds == 1 or (self.seeds <= 5 and 0.003 <= self.seed_share <= 0.03))
        )

    def members(self) -> NDArray[np.intp]:
        """The group of each document; of unequal groups, the largest has eight times the documents of the smallest."""
        if not self.groups:
            return np.arange(self.n)
        shares = np.geomspace(1, 8 if self.unequal else 1, self.groups)
        ends = np.rint(np.cumsum(shares) / shares.sum() * self.n)
        return np.searchsorted(ends, np.arange(self.n), side="right").astype(np.intp)


def _answers(setting: Setting, random: np.random.Generator, models: int) -> list[Table]:
    """The answers of one model, or of two: documents × seeds."""
    members, hardness = setting.members(), random.normal(size=(setting.n, 1))
    common = random.normal(size=setting.groups)
    rest = np.sqrt(1 - _DIFFICULTY - setting.seed_share)
    sides = []
    for p in (setting.p, setting.other)[:models]:
        threshold = np.full(setting.n, special.ndtri(p))
        if setting.icc > 0:
            place = special.ndtr(np.sqrt(0.5) * (common + random.normal(size=setting.groups)))
            weight = 1 / setting.icc - 1
            threshold = special.ndtri(special.betaincinv(p * weight, (1 - p) * weight, place))[members]
        latent = np.sqrt(_DIFFICULTY) * hardness + np.sqrt(setting.seed_share) * random.normal(size=setting.seeds)
        latent = latent + rest * random.normal(size=(setting.n, setting.seeds))
        sides.append((latent < threshold[:, None]).astype(np.float64))
    return sides


def _scores(table: Table) -> dict[str, list[float]]:
    return {f"{i:04}": row for i, row in enumerate(table.tolist())}


def _wilson(sides: Sequence[Table], groups: Mapping[str, str]) -> Interval | Difference:
    return wilson(int(sides[0].sum()), sides[0].size)


def _crossed(sides: Sequence[Table], groups: Mapping[str, str]) -> Interval | Difference:
    return crossed_interval(_scores(sides[0]))


def _clustered(sides: Sequence[Table], groups: Mapping[str, str]) -> Interval | Difference:
    return cluster_interval(_scores(sides[0]), groups)


def _paired(sides: Sequence[Table], groups: Mapping[str, str]) -> Interval | Difference:
    return paired_difference(_scores(sides[0]), _scores(sides[1]))


def _clustered_pairs(sides: Sequence[Table], groups: Mapping[str, str]) -> Interval | Difference:
    return cluster_difference(_scores(sides[0]), _scores(sides[1]), groups)


INTERVALS: dict[str, Callable[[Sequence[Table], Mapping[str, str]], Interval | Difference]] = {
    "wilson": _wilson,
    "crossed_interval": _crossed,
    "cluster_interval": _clustered,
    "paired_difference": _paired,
    "cluster_difference": _clustered_pairs,
}
"""Name → how it is found from one or two models' answers, and the group of each document."""


def settings(name: str) -> Iterator[Setting]:
    """The settings an interval is tried in."""
    gap = _GAP if name.endswith("difference") else 0.0
    if name.startswith("cluster"):
        yield from _grouped(gap)
        return
    gaps = (0.0, gap) if gap else (0.0,)
    for (n, p), g in product(((100, 0.05), (100, 0.2), (100, 0.95), (250, 0.02), (250, 0.98)), gaps):
        yield Setting(p, n, gap=g)
    for n, p, g in product((200, 1000), (0.05, 0.5, 0.95), gaps):
        yield Setting(p, n, gap=g)
    if name != "wilson":
        for n, (seeds, share), p in product((100, 300, 1000), _SEEDS, (0.05, 0.5, 0.95)):
            yield Setting(p, n, seeds=seeds, seed_share=share, gap=gap)
        # Extremes: seeds that do not vary.
        for n, seeds in product((50, 1000), (2, 3)):
            yield Setting(0.5, n, seeds=seeds, gap=gap)
    # Extremes: a right or a wrong answer or two.
    for n, p, g in product((50, 100), (0.01, 0.99), gaps):
        yield Setting(p, n, gap=g)


def _grouped(gap: float) -> Iterator[Setting]:
    for (n, groups), icc, p in product(((200, 10), (1000, 10), (1000, 57)), (0.01, 0.05, 0.1), (0.05, 0.5, 0.9)):
        yield Setting(p, n, groups, icc, gap=gap)
    for (n, groups), icc, p in product(((400, 10), (1000, 57)), (0.05, 0.1), (0.1, 0.5)):
        yield Setting(p, n, groups, icc, unequal=True, gap=gap)
    for icc in (0.01, 0.1):
        yield Setting(0.02, 1000, 57, icc, gap=gap)
    for groups, (seeds, share), p in product((10, 57), _SEEDS, (0.1, 0.5)):
        yield Setting(p, 1000, groups, 0.05, seeds=seeds, seed_share=share, gap=gap)
    # Extremes: few groups, groups very much alike.
    for groups, icc, p in product((5, 10, 57), (0.05, 0.2), (0.02, 0.5)):
        if groups == 5 or icc > 0.1:
            yield Setting(p, 1000, groups, icc, gap=gap)


def coverage(name: str, setting: Setting, draws: int, seed: int = 0) -> tuple[float, float]:
    """The share of draws whose interval held the truth, and the mean width."""
    random, two = np.random.default_rng(seed), name.endswith("difference")
    groups = {f"{i:04}": str(g) for i, g in enumerate(setting.members().tolist())}
    truth = setting.p - setting.other if two else setting.p
    held, width = 0, 0.0
    for _ in range(draws):
        found = INTERVALS[name](_answers(setting, random, 1 + two), groups)
        # Rounding must not put a bound of exactly 0 or 1 on the wrong side.
        held += found.low - 1e-12 <= truth <= found.high + 1e-12
        width += found.high - found.low
    return held / draws, width / draws


def mark(setting: Setting, held: float, draws: int) -> str:
    """How a row is marked: "low" or "high" outside 93-97 %, in capitals where that counts (see the module).

    Args:
        setting: what was simulated.
        held: the share of draws whose interval held the truth.
        draws: how many draws there were.
    """
    if _LEAST <= held <= _MOST:
        return ""
    word, margin = "low" if held < _LEAST else "high", wilson(round(held * draws), draws)
    beyond = margin.high < _LEAST or (margin.low > _MOST and setting.seeds != 2)
    return word.upper() if setting.realistic and beyond else word


def power(setting: Setting, draws: int, seed: int = 0) -> tuple[float, float, float]:
    """How often a difference is found at 5 % paired by document and unpaired (Welch's t), and the gain of pairing.

    The gain: how many times the documents an unpaired comparison would need for an interval as narrow.
    """
    random = np.random.default_rng(seed)
    paired, apart, gains = 0, 0, []
    for _ in range(draws):
        a, b = _answers(setting, random, 2)
        paired += paired_difference(_scores(a), _scores(b)).p < 0.05
        apart += bool(stats.ttest_ind(a.mean(axis=1), b.mean(axis=1), equal_var=False).pvalue < 0.05)
        gains.append((a.var(ddof=1) + b.var(ddof=1)) / (a - b).var(ddof=1))
    return paired / draws, apart / draws, float(np.median(gains))


def _row(cells: Sequence[object]) -> None:
    print("  ".join(f"{c!s:>9}" for c in cells), flush=True)


def _coverages(name: str, draws: int) -> list[tuple[Setting, str]]:
    """Print the table of one interval; its settings, and how they are marked."""
    print(f"{name}: coverage of nominal 95 %, {draws} draws a row")
    _row(("p", "p of b", "n", "groups", "sizes", "icc", "seeds", "seed part", "coverage", "width", "setting", ""))
    found = []
    for s in settings(name):
        held, width = coverage(name, s, draws)
        found.append((s, mark(s, held, draws)))
        groups = (s.groups, "1:8" if s.unequal else "equal", s.icc) if s.groups else ("-", "-", "-")
        other = f"{s.other:.2f}" if name.endswith("difference") else "-"
        kind = "realistic" if s.realistic else "extreme"
        _row((s.p, other, s.n, *groups, s.seeds, s.seed_share, f"{held:.1%}", f"{width:.4f}", kind, found[-1][1]))
    print()
    return found


def main() -> int:
    """Print the tables; 1 where a realistic coverage is outside 93-97 % by more than the Monte Carlo error."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=1000, help="simulated experiments of each row")
    parser.add_argument("--only", choices=INTERVALS, action="append", help="this interval; may be repeated")
    args = parser.parse_args()
    found = [row for name in args.only or INTERVALS for row in _coverages(name, args.draws)]
    if not args.only:
        print(f"Power at 5 %: paired_difference against an unpaired Welch test, {args.draws} draws a row")
        _row(("a", "b", "n", "paired", "unpaired", "gain"))
        for n, gap in product((100, 200, 500, 1000), (0.02, 0.05, 0.1)):
            s = Setting(0.5, n, gap=gap)
            paired, apart, gain = power(s, args.draws)
            _row((s.p, f"{s.other:.2f}", n, f"{paired:.1%}", f"{apart:.1%}", f"{gain:.2f}x"))
        print()
    error = wilson(round(0.95 * args.draws), args.draws)
    print(f"Monte Carlo error of a coverage of 95 %: {error.low:.1%} to {error.high:.1%}")
    for kind, rows in (
        ("realistic", [m for s, m in found if s.realistic and s.seeds != 2]),
        ("realistic, two seeds", [m for s, m in found if s.realistic and s.seeds == 2]),
        ("extreme", [m for s, m in found if not s.realistic]),
    ):
        outside, beyond = sum(bool(m) for m in rows), sum(m.isupper() for m in rows)
        print(f"{kind}: {outside} of {len(rows)} outside 93-97 %, {beyond} of them judged and beyond that error")
    return int(any(m.isupper() for _, m in found))


if __name__ == "__main__":
    sys.exit(main())
