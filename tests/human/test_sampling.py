"""Which prompts are rated: strata in proportion, the spread of scores as in the whole, or the greatest spread alone."""

from collections import Counter
from random import Random

from harness.human._answers import Prompt
from harness.human._sampling import sample


def _prompts(**sizes: int) -> list[Prompt]:
    return [
        Prompt(f"{stratum}{n:03}", "text", stratum, n / size, {})
        for stratum, size in sizes.items()
        for n in range(size)
    ]


def test_strata_are_there_in_proportion() -> None:
    prompts = _prompts(a=60, b=30, c=10)
    for seed in range(5):
        chosen = sample(prompts, 20, "stratified", Random(seed))
        assert Counter(p.stratum for p in chosen) == {"a": 12, "b": 6, "c": 2}
        assert len({p.document for p in chosen}) == 20
    # Largest remainders: exactly as many as were asked for, and none left out that has half a place or more.
    assert Counter(p.stratum for p in sample(prompts, 7, "stratified", Random(0))) == {"a": 4, "b": 2, "c": 1}


def test_prompts_on_which_recipes_agree_and_differ_are_there_as_in_the_whole() -> None:
    prompts = _prompts(a=100)
    for seed in range(5):
        spreads = sorted(p.spread for p in sample(prompts, 10, "stratified", Random(seed)))
        # One of each tenth.
        assert [int(10 * s) for s in spreads] == list(range(10))
    drawn = {tuple(sorted(p.document for p in sample(prompts, 10, "stratified", Random(seed)))) for seed in range(20)}
    assert len(drawn) > 5


def test_differing_prompts_are_those_furthest_apart() -> None:
    prompts = _prompts(a=50, b=20)
    chosen = sample(prompts, 5, "differing", Random(0))
    assert [p.spread for p in chosen] == sorted((p.spread for p in prompts), reverse=True)[:5]
    assert chosen == sample(prompts[::-1], 5, "differing", Random(1))


def test_few_prompts_are_all_taken_and_order_decides_nothing() -> None:
    prompts = _prompts(a=4, b=2)
    assert sample(prompts, 6, "stratified", Random(0)) == prompts
    mixed = list(prompts)
    Random(3).shuffle(mixed)
    assert sample(mixed, 3, "stratified", Random(1)) == sample(prompts, 3, "stratified", Random(1))
