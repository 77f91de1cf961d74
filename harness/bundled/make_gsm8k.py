"""Write (or check) the bundled stand-in for GSM8K: short, annotated word problems.

The rows are drawn from the story templates below with a fixed seed, so the committed files can be
reproduced exactly.  Every row is verified before it is written: each ``<<expression=value>>``
annotation is evaluated, its operands must come from the question or from an earlier step, and the
number after ``####`` must be the value of the last annotation.

Usage, from the root of the checkout::

    python -m harness.bundled.make_gsm8k           # write the files
    python -m harness.bundled.make_gsm8k --check   # exit 1 unless the files are what this writes
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

SEED = 20240
SPLIT_SIZES: Mapping[str, int] = {"train": 80, "test": 120}
# The share of each kind of story: one-step stories by their operator, then all longer ones.
SHARES: Mapping[str, float] = {"+": 0.65, "-": 0.2, "*": 0.06, "/": 0.02, "longer": 0.07}
FOLDER = Path(__file__).resolve().parent / "openai" / "gsm8k" / "main"

# Each name comes with its subject pronoun.
NAMES: tuple[tuple[str, str], ...] = (
    *((name, "she") for name in ("Mia", "Zara", "Ines", "Ruth", "Priya", "Hana", "Olga")),
    *((name, "she") for name in ("Clara", "Nadia", "Wanda", "Amara", "Freya", "Lucia")),
    *((name, "he") for name in ("Omar", "Felix", "Jonas", "Kofi", "Ravi", "Luca", "Otto")),
    *((name, "he") for name in ("Theo", "Samir", "Bruno", "Diego", "Hugo", "Emil")),
)


@dataclass(frozen=True)
class Template:
    """A story: ``steps`` holds (expression, sentence) pairs; ``{calc}`` is the annotated sum.

    Fields usable in the texts: ``{n}``/``{m}`` two names, ``{they}`` the pronoun of the first,
    ``{t}`` the things counted, the variables of ``ranges`` and the results ``{x1}``, ``{x2}`` of
    the steps so far.  The numbers are redrawn until every result is a whole number from 2 to
    ``limit``.
    """

    key: str
    question: str
    steps: tuple[tuple[str, str], ...]
    things: tuple[str, ...]
    ranges: Mapping[str, tuple[int, int]]
    limit: int = 20

    @property
    def kind(self) -> str:
        """The operator of a one-step story, ``longer`` for any other."""
        if len(self.steps) > 1:
            return "longer"
        return self.steps[0][0].removeprefix("{a}")[0]


SMALL: Mapping[str, tuple[int, int]] = {"a": (2, 8), "b": (2, 6)}
TAKE: Mapping[str, tuple[int, int]] = {"a": (5, 10), "b": (2, 5)}
TIMES: Mapping[str, tuple[int, int]] = {"a": (2, 5), "b": (2, 5)}
PARTS: Mapping[str, tuple[int, int]] = {"a": (4, 12), "b": (2, 4)}
THREE: Mapping[str, tuple[int, int]] = {"a": (2, 9), "b": (2, 6), "c": (2, 6)}

ONE_STEP: tuple[Template, ...] = (
    Template(
        "buy",
        "{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?",
        (("{a}+{b}", "{n} now has {calc} {t}."),),
        ("stickers", "marbles", "pencils", "beads"),
        SMALL,
    ),
    Template(
        "eat",
        "There are {a} {t} on a plate. {n} eats {b} of them. How many {t} are left?",
        (("{a}-{b}", "There are {calc} {t} left."),),
        ("cookies", "grapes", "dumplings", "plums"),
        TAKE,
    ),
    Template(
        "bags",
        "{n} fills {a} bags with {b} {t} each. How many {t} is that in all?",
        (("{a}*{b}", "That is {calc} {t} in all."),),
        ("apples", "potatoes", "walnuts", "oranges"),
        TIMES,
    ),
    Template(
        "share",
        "{n} shares {a} {t} equally among {b} friends. How many {t} does each friend get?",
        (("{a}/{b}", "Each friend gets {calc} {t}."),),
        ("cards", "sweets", "crackers", "balloons"),
        PARTS,
    ),
    Template(
        "two_people",
        "{n} picks {a} {t} and {m} picks {b} {t}. How many {t} do they pick together?",
        (("{a}+{b}", "Together they pick {calc} {t}."),),
        ("lemons", "daisies", "pears", "mushrooms"),
        SMALL,
    ),
    Template(
        "bus",
        "A bus carries {a} people. At the next stop {b} people get off. How many people are still on the bus?",
        (("{a}-{b}", "There are still {calc} people on the bus."),),
        ("people",),
        TAKE,
    ),
    Template(
        "spend",
        "{n} has ${a}. {They} spends ${b} on {t}. How many dollars does {they} have left?",
        (("{a}-{b}", "{n} has {calc} dollars left."),),
        ("a comic", "lunch", "a scarf", "a bus ticket", "a notebook"),
        TAKE,
    ),
    Template(
        "pages",
        "{n} read {a} {t} on Monday and {b} {t} on Tuesday. How many {t} did {they} read in total?",
        (("{a}+{b}", "{n} read {calc} {t} in total."),),
        ("pages", "poems", "chapters"),
        SMALL,
    ),
    Template(
        "age",
        "{n} is {a} years old. How old will {they} be in {b} years?",
        (("{a}+{b}", "In {b} years {n} will be {calc} years old."),),
        ("years",),
        {"a": (3, 9), "b": (2, 5)},
    ),
    Template(
        "younger",
        "{n} is {a} years old. {m} is {b} years younger. How old is {m}?",
        (("{a}-{b}", "{m} is {calc} years old."),),
        ("years",),
        {"a": (6, 12), "b": (2, 5)},
    ),
    Template(
        "pond",
        "{a} {t} swim in a pond. Then {b} more {t} come. How many {t} are in the pond?",
        (("{a}+{b}", "There are {calc} {t} in the pond."),),
        ("ducks", "swans", "frogs", "geese"),
        SMALL,
    ),
    Template(
        "fly_away",
        "{a} {t} sit on a fence and {b} of them fly away. How many {t} stay?",
        (("{a}-{b}", "{calc} {t} stay."),),
        ("sparrows", "crows", "pigeons", "owls"),
        TAKE,
    ),
    Template(
        "garden",
        "{n} plants {a} {t} in the morning and {b} in the afternoon. How many {t} does {they} plant that day?",
        (("{a}+{b}", "{n} plants {calc} {t} that day."),),
        ("tulips", "bushes", "roses", "beans"),
        SMALL,
    ),
    Template(
        "vases",
        "Each vase holds {b} {t}. {n} has {a} vases. How many {t} does {they} need?",
        (("{a}*{b}", "{n} needs {calc} {t}."),),
        ("roses", "lilies", "branches"),
        TIMES,
    ),
    Template(
        "lost",
        "{n} had {a} {t} but lost {b} of them. How many {t} does {they} still have?",
        (("{a}-{b}", "{n} still has {calc} {t}."),),
        ("buttons", "keys", "coins", "crayons"),
        TAKE,
    ),
    Template(
        "gift",
        "{n} owns {a} {t}. {m} gives {n} {b} {t}. How many {t} does {n} own now?",
        (("{a}+{b}", "{n} now owns {calc} {t}."),),
        ("books", "stamps", "hats", "shells"),
        SMALL,
    ),
    Template(
        "walk",
        "{n} walks {a} miles before lunch and {b} miles after lunch. How many miles does {they} walk?",
        (("{a}+{b}", "{n} walks {calc} miles."),),
        ("miles",),
        {"a": (2, 8), "b": (2, 5)},
    ),
    Template(
        "price",
        "One {t} costs ${b}. {n} buys {a} of them. How many dollars does {they} pay?",
        (("{a}*{b}", "{n} pays {calc} dollars."),),
        ("ticket", "mug", "kite", "cake"),
        TIMES,
    ),
    Template(
        "class",
        "A class has {a} {t} and {b} of them are ill today. How many {t} are in class?",
        (("{a}-{b}", "There are {calc} {t} in class."),),
        ("students", "pupils", "children"),
        {"a": (8, 12), "b": (2, 5)},
    ),
    Template(
        "fruit_bowl",
        "A bowl holds {a} bananas and {b} {t}. How many pieces of fruit are in the bowl?",
        (("{a}+{b}", "There are {calc} pieces of fruit in the bowl."),),
        ("apples", "peaches", "kiwis", "mangoes"),
        SMALL,
    ),
    Template(
        "rows",
        "{n} puts {a} {t} into {b} equal rows. How many {t} are in each row?",
        (("{a}/{b}", "Each row has {calc} {t}."),),
        ("chairs", "bricks", "tiles", "photos"),
        PARTS,
    ),
    Template(
        "shop",
        "A shop has {a} {t} and sells {b} of them. How many {t} remain?",
        (("{a}-{b}", "{calc} {t} remain."),),
        ("bikes", "lamps", "umbrellas", "radios"),
        TAKE,
    ),
    Template(
        "goals",
        "{n} scored {a} {t} in the first game and {b} {t} in the second. How many {t} did {they} score altogether?",
        (("{a}+{b}", "{n} scored {calc} {t} altogether."),),
        ("goals", "points", "baskets"),
        SMALL,
    ),
    Template(
        "parking",
        "{a} cars and {b} {t} are in a car park. How many vehicles are there?",
        (("{a}+{b}", "There are {calc} vehicles."),),
        ("vans", "trucks", "buses"),
        SMALL,
    ),
    Template(
        "hens",
        "A hen lays {b} eggs a week. How many eggs do {a} hens lay in a week?",
        (("{a}*{b}", "{a} hens lay {calc} eggs in a week."),),
        ("eggs",),
        TIMES,
    ),
    Template(
        "more_than",
        "{m} has {a} {t}. {n} has {b} more {t} than {m}. How many {t} does {n} have?",
        (("{a}+{b}", "{n} has {calc} {t}."),),
        ("dolls", "ribbons", "puzzles", "magnets"),
        SMALL,
    ),
    Template(
        "break",
        "A box holds {a} {t}. {n} drops it and {b} {t} break. How many {t} are not broken?",
        (("{a}-{b}", "{calc} {t} are not broken."),),
        ("eggs", "glasses", "cups", "bulbs"),
        TAKE,
    ),
)

TWO_STEP: tuple[Template, ...] = (
    Template(
        "give_then_find",
        "{n} has {a} {t}. {They} finds {b} more and gives {c} to {m}. How many {t} does {n} have left?",
        (
            ("{a}+{b}", "{n} has {calc} {t} at first."),
            ("{x1}-{c}", "After the gift {n} has {calc} {t}."),
        ),
        ("pebbles", "feathers", "acorns", "pine cones"),
        THREE,
    ),
    Template(
        "three_days",
        "{n} bakes {a} {t} on Friday, {b} on Saturday and {c} on Sunday. How many {t} does {they} bake?",
        (
            ("{a}+{b}", "On the first two days {n} bakes {calc} {t}."),
            ("{x1}+{c}", "In all {they} bakes {calc} {t}."),
        ),
        ("pies", "muffins", "loaves", "tarts"),
        THREE,
    ),
    Template(
        "train_stop",
        "A train has {a} riders. Then {b} riders get off and {c} get on. How many riders are on the train?",
        (
            ("{a}-{b}", "After some get off there are {calc} riders."),
            ("{x1}+{c}", "Then there are {calc} riders."),
        ),
        ("riders",),
        {"a": (8, 15), "b": (2, 6), "c": (2, 6)},
    ),
    Template(
        "boxes_plus",
        "{n} has {a} boxes of {b} {t} and {c} loose {t}. How many {t} does {they} have?",
        (
            ("{a}*{b}", "The boxes hold {calc} {t}."),
            ("{x1}+{c}", "In all {n} has {calc} {t}."),
        ),
        ("candles", "pens", "nails", "tea bags"),
        {"a": (2, 4), "b": (2, 5), "c": (2, 5)},
    ),
    Template(
        "change",
        "{n} buys {a} {t} for ${b} each and pays with ${c}. How many dollars does {they} get back?",
        (
            ("{a}*{b}", "The {t} cost {calc} dollars."),
            ("{c}-{x1}", "{n} gets back {calc} dollars."),
        ),
        ("sandwiches", "toys", "plants"),
        {"a": (2, 4), "b": (2, 4), "c": (10, 20)},
    ),
    Template(
        "twice",
        "{n} has {a} {t}. {m} has 2 times as many. How many {t} do they have together?",
        (
            ("{a}*2", "{m} has {calc} {t}."),
            ("{a}+{x1}", "Together they have {calc} {t}."),
        ),
        ("rabbits", "drawings", "medals", "kites"),
        {"a": (2, 6)},
    ),
    Template(
        "two_losses",
        "{n} had {a} {t}. {They} gave {b} to {m} and {c} to a neighbor. How many {t} does {n} have now?",
        (
            ("{b}+{c}", "{n} gave away {calc} {t}."),
            ("{a}-{x1}", "{n} now has {calc} {t}."),
        ),
        ("tomatoes", "eggs", "carrots", "flower pots"),
        {"a": (10, 19), "b": (2, 5), "c": (2, 5)},
    ),
    Template(
        "half_left",
        "{n} has {a} {t} and gets {b} more. {They} puts them equally on 2 shelves. How many {t} are on each shelf?",
        (
            ("{a}+{b}", "{n} has {calc} {t}."),
            ("{x1}/2", "Each shelf holds {calc} {t}."),
        ),
        ("jars", "books", "vases", "boxes"),
        {"a": (2, 9), "b": (2, 9)},
    ),
)

# The first five rows of train: one of each kind.
FIRST_ROWS = ("buy", "eat", "bags", "give_then_find", "share")

ANNOTATION = re.compile(r"<<([^<>=]+)=(\d+)>>(\d+)")


def evaluate(expression: str) -> Fraction:
    """Return the value of ``number operator number``."""
    match = re.fullmatch(r"(\d+)([-+*/])(\d+)", expression)
    if match is None:
        raise ValueError(f"not a two-number expression: {expression!r}")
    left, right = Fraction(match[1]), Fraction(match[3])
    if match[2] == "+":
        return left + right
    if match[2] == "-":
        return left - right
    return left * right if match[2] == "*" else left / right


def verify(row: Mapping[str, str]) -> None:
    """Raise ValueError unless the solution of ``row`` follows from its question."""
    solution, _, final = row["answer"].rpartition("\n#### ")
    known = re.findall(r"\d+", row["question"])
    value = ""
    for line in solution.split("\n"):
        match = ANNOTATION.search(line)
        if match is None:
            raise ValueError(f"no annotation in {line!r}")
        expression, value, shown = match.groups()
        if evaluate(expression) != int(value) or shown != value:
            raise ValueError(f"wrong annotation in {line!r}")
        for operand in re.findall(r"\d+", expression):
            if operand not in known:
                raise ValueError(f"{operand} in {line!r} comes from nowhere")
        known.append(value)
    if final != value:
        raise ValueError(f"the answer {final!r} is not the last value {value!r}")


def draw(template: Template, rng: random.Random) -> dict[str, str]:
    """Return one question and its solution, the numbers redrawn until they suit the template."""
    (name, they), (other, _) = rng.sample(NAMES, 2)
    words = {"n": name, "m": other, "they": they, "They": they.capitalize()}
    words["t"] = rng.choice(template.things)
    while True:
        fields = dict(words)
        for variable, (low, high) in template.ranges.items():
            fields[variable] = str(rng.randint(low, high))
        lines: list[str] = []
        for number, (pattern, sentence) in enumerate(template.steps, start=1):
            expression = pattern.format_map(fields)
            value = evaluate(expression)
            if value.denominator != 1 or not 2 <= value <= template.limit:
                break
            fields[f"x{number}"] = str(value)
            fields["calc"] = f"{expression} = <<{expression}={value}>>{value}"
            lines.append(sentence.format_map(fields))
        else:
            solution = "\n".join(lines)
            final = fields[f"x{len(template.steps)}"]
            return {
                "question": template.question.format_map(fields),
                "answer": f"{solution}\n#### {final}",
            }


def choose(count: int, rng: random.Random) -> list[Template]:
    """Return ``count`` templates in the wanted shares, those of one kind used equally often."""
    pools: dict[str, list[Template]] = {kind: [] for kind in SHARES}
    for template in (*ONE_STEP, *TWO_STEP):
        pools[template.kind].append(template)
    chosen: list[Template] = []
    for kind, pool in pools.items():
        wanted = count - len(chosen) if kind == "longer" else round(count * SHARES[kind])
        deck: list[Template] = []
        while len(deck) < wanted:
            deck.extend(rng.sample(pool, len(pool)))
        chosen.extend(deck[:wanted])
    rng.shuffle(chosen)
    return chosen


def generate() -> dict[str, list[dict[str, str]]]:
    """Return the rows of every split; no question occurs twice."""
    rng = random.Random(SEED)
    by_key = {template.key: template for template in (*ONE_STEP, *TWO_STEP)}
    seen: set[str] = set()
    splits: dict[str, list[dict[str, str]]] = {}
    for split, size in SPLIT_SIZES.items():
        first = [by_key[key] for key in FIRST_ROWS] if split == "train" else []
        rows: list[dict[str, str]] = []
        for template in (*first, *choose(size - len(first), rng)):
            row = draw(template, rng)
            while row["question"] in seen:
                row = draw(template, rng)
            verify(row)
            seen.add(row["question"])
            rows.append(row)
        splits[split] = rows
    return splits


def render(rows: Sequence[Mapping[str, str]]) -> str:
    """Return ``rows`` as JSON Lines."""
    return "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the split files, or with ``--check`` compare them with what would be written."""
    parser = argparse.ArgumentParser(description="Write the bundled stand-in for GSM8K.")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    check = bool(parser.parse_args(argv).check)
    status = 0
    for split, rows in generate().items():
        path = FOLDER / f"{split}.jsonl"
        data = render(rows).encode()
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"wrote {path.name}: {len(rows)} rows")
        elif path.is_file() and path.read_bytes() == data:
            print(f"{path.name}: {len(rows)} rows, as generated")
        else:
            print(f"{path.name}: differs from what this script generates")
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
