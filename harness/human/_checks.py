"""Attention checks: items of our own among the others, which whoever reads the answers gets right."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

__all__ = ["Check", "make_checks", "passes"]

_JUDGED = "helpfulness"


@dataclass(frozen=True)
class Check:
    """A prompt with answers, and what must be seen in one of them.

    `asked` is the mark that the answer at `target` asks for on every scale; None where that answer is plainly useless,
    and must be found less helpful than each of the others.
    """

    prompt: str
    answers: tuple[str, ...]
    target: int
    asked: int | None

    def expects(self) -> dict[str, object]:
        """What the key keeps of it."""
        return {"target": self.target, "asked": self.asked}


# Prompt, an answer of no use, and sensible ones.
_TEXTS = (
    (
        "How long should I boil an egg so that the yolk is firm?",
        "Egg egg the of boil seventeen colour. Because the, and then window.",
        (
            "About ten minutes from the moment the water boils.",
            "Nine to eleven minutes, then cool it in cold water so that it stops cooking.",
            "Ten minutes for a firm yolk; six if you want it soft.",
        ),
    ),
    (
        "Write a friendly sentence that thanks a neighbour for watering my plants.",
        "Tectonic plates move a few centimetres each year.",
        (
            "Thank you so much for looking after my plants while I was away!",
            "Dear neighbour, my plants and I are very grateful for your care.",
            "Thanks a lot for watering the plants; they look better than when I left.",
        ),
    ),
    (
        "What is a good way to remember the names of people I meet?",
        "asdf jkl; 0000 asdf asdf.",
        (
            "Say the name aloud when you hear it, and link it to something about the person.",
            "Repeat the name in the conversation and write it down afterwards.",
            "Picture the name as an image, and use it when you say goodbye.",
        ),
    ),
    (
        "Give me two tips for sleeping better.",
        "The capital of a country is often, but not always, its largest city.",
        (
            "Go to bed at the same time every day, and keep the room dark.",
            "Leave your phone in another room, and drink no coffee in the afternoon.",
            "Get some daylight in the morning, and keep the bedroom cool.",
        ),
    ),
    (
        "How do I remove a coffee stain from a cotton shirt?",
        "Yes. Yes. Yes. Yes. No. Yes.",
        (
            "Rinse it with cold water at once, then wash it with detergent.",
            "Dab it with water and a little vinegar before you wash it.",
            "Soak it in cold water with detergent for half an hour, then wash it as usual.",
        ),
    ),
    (
        "Suggest a name for a small bakery.",
        "To change a tyre, first loosen the nuts a little.",
        ("Crumb & Crust.", "The Morning Loaf.", "Little Oven."),
    ),
)
_INSTRUCTION = "This answer is here to see whether it is read. Please give it a {mark} on every scale."


def make_checks(count: int, answers: int, criteria: Sequence[str], random: Random) -> list[Check]:
    """So many checks with so many answers each (four at most), instructions and useless answers by turns.

    A useless answer is only told by helpfulness: without that criterion, or with one answer, all are instructions.
    """
    made = []
    order = random.sample(range(len(_TEXTS)), len(_TEXTS))
    for number in range(count):
        prompt, useless, sensible = _TEXTS[order[number % len(order)]]
        target = random.randrange(answers)
        texts = random.sample(sensible, answers - 1)
        asked = None if number % 2 and answers > 1 and _JUDGED in criteria else random.choice((1, 2, 6, 7))
        texts.insert(target, useless if asked is None else _INSTRUCTION.format(mark=asked))
        made.append(Check(prompt, tuple(texts), target, asked))
    return made


def passes(target: int, asked: int | None, scores: Sequence[Sequence[int]], criteria: Sequence[str]) -> bool:
    """Whether these scores (answers × criteria) pass a check."""
    if asked is not None:
        return all(score == asked for score in scores[target])
    place = criteria.index(_JUDGED)
    return all(row[place] > scores[target][place] for number, row in enumerate(scores) if number != target)
