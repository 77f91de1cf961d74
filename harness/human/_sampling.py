"""Which prompts people rate: a stratified sample, or those on which the recipes' scores are furthest apart."""

import math
from collections.abc import Sequence
from random import Random
from typing import Literal

from harness.human._answers import Prompt

__all__ = ["Sampling", "sample"]

Sampling = Literal["stratified", "differing"]


def sample(prompts: Sequence[Prompt], count: int, how: Sampling, random: Random) -> list[Prompt]:
    """`count` of the prompts at most.

    `stratified`: every stratum (category and aspects) in proportion to its size, by largest remainders; within one,
    every n-th from a random start along the spread of the recipes' scores, so that prompts on which models agree and
    differ are there as in the whole. `differing`: those with the greatest spread. These say more for each rating, but
    their means are not those of all prompts.
    """
    if count >= len(prompts):
        return list(prompts)
    if how == "differing":
        return sorted(prompts, key=lambda p: (-p.spread, p.document))[:count]
    strata: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda p: (p.spread, p.document)):
        strata.setdefault(prompt.stratum, []).append(prompt)
    shares = _shares({name: len(members) for name, members in strata.items()}, count)
    return [p for name, members in sorted(strata.items()) for p in _systematic(members, shares[name], random)]


def _shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    whole = sum(sizes.values())
    exact = {name: count * size / whole for name, size in sizes.items()}
    shares = {name: math.floor(value) for name, value in exact.items()}
    left = count - sum(shares.values())
    for name in sorted(exact, key=lambda n: (shares[n] - exact[n], n))[:left]:
        shares[name] += 1
    return shares


def _systematic(members: Sequence[Prompt], count: int, random: Random) -> list[Prompt]:
    if not count:
        return []
    step, start = len(members) / count, random.random()
    return [members[int((start + place) * step)] for place in range(count)]
