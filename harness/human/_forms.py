"""Who rates what, in which order, and what a form says: everything a rater sees, and the key that stays here.

Some prompts are rated by every rater, which is what agreement is computed from; the others are dealt out evenly.
Answers stand in a random order, each form its own. Neighbours are compared: every two recipes meet
equally often, and no letter stands out as a baseline would. The random numbers come from the seed together with the
content keys of the answers, which no rater has, so that a form cannot be made again from what stands in it.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from random import Random
from typing import Any

from harness.errors import UserError
from harness.human._answers import Prompt
from harness.human._checks import make_checks
from harness.human._criteria import SCALE, Criterion
from harness.human._sampling import Sampling, sample
from harness.keys import content_key

__all__ = ["FORM", "Design", "Form", "Study", "digest", "make_study"]

FORM = "harness-rating-form"
"""What a form's JSON calls itself."""


@dataclass(frozen=True)
class Design:
    """What is asked of whom.

    `overlap` is the share of prompts that every rater gets; `together` how many answers an item shows at most.
    """

    criteria: tuple[Criterion, ...]
    prompts: int = 40
    raters: int = 3
    overlap: float = 0.3
    checks: int = 3
    pairs: bool = True
    together: int = 3
    sampling: Sampling = "stratified"
    seed: int = 0

    def check(self) -> None:
        """Raises:
        UserError: a number that makes no study.
        """
        for name, low, high in (("prompts", 1, 1000), ("raters", 1, 100), ("checks", 0, 20), ("together", 1, 4)):
            if not low <= (given := getattr(self, name)) <= high:
                raise UserError(f"--{name}: expected {low} to {high}, got {given}")
        if not 0 <= self.overlap <= 1:
            raise UserError(f"--overlap: expected the share of prompts for all raters, 0 to 1, got {self.overlap}")
        if self.seed < 0:
            raise UserError(f"--seed: expected a number from 0 on, got {self.seed}")


@dataclass(frozen=True)
class Form:
    """One rater's: `content` is all that they see, `key` says for each item whose answers these are.

    Number 0 is for Label Studio: all prompts, of which each annotator does some.
    """

    number: int
    content: Mapping[str, Any]
    key: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        return digest(self.content)


@dataclass(frozen=True)
class Study:
    """The forms that were made together."""

    name: str
    forms: tuple[Form, ...]
    shared: int
    prompts: int


def digest(content: object) -> str:
    """sha256 (hex) of JSON with sorted keys, no spaces and everything but ASCII escaped; a page computes the same."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def make_study(sweep: str, prompts: Sequence[Prompt], design: Design) -> Study:
    """The forms of a study; equal input gives equal forms.

    Args:
        sweep: whose answers these are.
        prompts: all that could be asked, see `read_prompts`.

    Raises:
        UserError: see `Design.check`; or more raters than prompts where none are shared.
    """
    design.check()
    secret = content_key(
        "human-study",
        sweep=sweep,
        answers=sorted({a.measurement for p in prompts for answers in p.answers.values() for a in answers}),
        design=[[c.name, c.question, c.low, c.high] for c in design.criteria],
        numbers=[design.prompts, design.raters, design.overlap, design.checks, design.together, design.seed],
        how=[design.pairs, design.sampling, *sorted(prompts[0].answers)],
    )
    chosen = sample(prompts, design.prompts, design.sampling, Random(f"{secret}/sample"))
    Random(f"{secret}/deal").shuffle(chosen)
    shared = math.ceil(design.overlap * len(chosen))
    rest = chosen[shared:]
    if not shared and len(rest) < design.raters:
        raise UserError(
            f"{len(rest)} prompts cannot be dealt out to {design.raters} raters: fewer raters or an overlap"
        )
    name = hashlib.sha256(secret.encode()).hexdigest()[:12]
    sets = _recipe_sets(sorted(prompts[0].answers), design.together, len(chosen), Random(f"{secret}/sets"))
    of = {p.document: (number, recipes) for number, (p, recipes) in enumerate(zip(chosen, sets, strict=True))}
    forms = [_form(name, secret, 0, chosen, of, design)]
    for rater in range(1, design.raters + 1):
        mine = [*chosen[:shared], *rest[rater - 1 :: design.raters]]
        forms.append(_form(name, secret, rater, mine, of, design))
    return Study(name, tuple(forms), shared, len(chosen))


def _recipe_sets(recipes: Sequence[str], together: int, count: int, random: Random) -> list[tuple[str, ...]]:
    """Which recipes each item shows: all, or so many of them that each is shown, and meets each other, evenly."""
    size, made = min(together, len(recipes)), list[tuple[str, ...]]()
    while len(made) < count:
        every = list(combinations(recipes, size))
        random.shuffle(every)
        made += every
    return made[:count]


def _form(
    name: str,
    secret: str,
    number: int,
    prompts: Sequence[Prompt],
    of: Mapping[str, tuple[int, tuple[str, ...]]],
    design: Design,
) -> Form:
    random, items, key = Random(f"{secret}/form/{number}"), list[dict[str, Any]](), dict[str, Any]()
    answers = len(next(iter(of.values()))[1])
    compared = [list(pair) for pair in pairwise(range(answers))] if design.pairs else []
    for prompt in prompts:
        place, recipes = of[prompt.document]
        order = list(recipes)
        Random(f"{secret}/order/{place}").shuffle(order)
        # Every rater of a shared prompt has another answer first.
        turn = number % len(order)
        order = order[turn:] + order[:turn]
        said = [prompt.answers[recipe][place % len(prompt.answers[recipe])] for recipe in order]
        item = _identifier(secret, number, prompt.document)
        items.append({"item": item, "prompt": prompt.text, "answers": [a.text for a in said]})
        key[item] = {"kind": "answers", "document": prompt.document, "answers": [a.origin() for a in said]}
    for place, check in enumerate(make_checks(design.checks, answers, [c.name for c in design.criteria], random)):
        item = _identifier(secret, number, f"check {place}")
        items.append({"item": item, "prompt": check.prompt, "answers": list(check.answers)})
        key[item] = {"kind": "check", **check.expects()}
    random.shuffle(items)
    content = {
        "format": FORM,
        "version": 1,
        "study": name,
        "number": number,
        "scale": [SCALE[0], SCALE[-1]],
        "criteria": [{"name": c.name, "question": c.question, "low": c.low, "high": c.high} for c in design.criteria],
        "pairs": compared,
        "items": items,
    }
    return Form(number, content, key)


def _identifier(secret: str, number: int, what: str) -> str:
    return hashlib.sha256(f"{secret}/item/{number}/{what}".encode()).hexdigest()[:16]
