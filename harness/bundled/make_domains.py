"""Makes the training sets of three domains, one after the other of which a model may learn: medical, legal, education.

    python -m harness.bundled.make_domains   # writes harness/bundled/local/domains

Each fact is asked for in several ways. The domains answer in different forms, so that what one teaches another can take
away. The facts of the held-out split are in no row of the training split: what is measured there is how well a model
answers in the domain's form and words, not what it has memorised.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FACTS", "main", "make_rows"]

Fact = tuple[str, str, str]


def _facts(path: Path) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            domain = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            term, what, more = (part.strip() for part in line.split("|"))
            domain.append((term, what, more))
    return found


FACTS = _facts(Path(__file__).parent / "domain_facts.txt")
"""Domain → term, what it is, a second sentence."""

_HELD_OUT = 4
"""One fact of so many is held out."""

_SHORT = "Answer in one sentence."
_FORMS: Mapping[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "medical": (
        "{term_}: {what}. {more} Ask a doctor if you are unsure.",
        ["What is {term}?", "My doctor mentioned {term}. What does that mean?", "How would I notice {term}?"],
        ["Explain {term} to a patient.", "A patient asks about {term}."],
    ),
    "legal": (
        "In law, {term} is {what}. {more} Rules differ from place to place.",
        ["What is {term}?", "What does the law understand by {term}?", "Define {term} and give an example."],
        ["Explain {term} to a client.", "A client asks about {term}."],
    ),
    "education": (
        "{term_} means {what}. In class: {more_}",
        ["What is {term}?", "What does {term} mean at school?", "How do teachers work with {term}?"],
        ["Explain {term} to a new teacher.", "A parent asks about {term}."],
    ),
}

Row = dict[str, Any]


def make_rows(domain: str, *, held_out: bool) -> list[Row]:
    """The rows of a split in a seeded order: `{"prompt": messages, "completion": messages}`."""
    form, whole, short = _FORMS[domain]
    rows: list[Row] = []
    for place, (term, what, more) in enumerate(FACTS[domain]):
        if (place % _HELD_OUT == 0) != held_out:
            continue
        words = {
            "term": term,
            "term_": term[0].upper() + term[1:],
            "what": what,
            "more": more,
            "more_": more[0].lower() + more[1:],
        }
        long_answer = form.format(**words)
        # All of the form up to the end of its first sentence.
        short_answer = f"{long_answer.partition('. ')[0]}."
        asked = [(q.format(**words), long_answer) for q in whole]
        asked += [(f"{q.format(**words)} {_SHORT}", short_answer) for q in short]
        rows += [
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            for question, answer in asked
        ]
    random.Random(f"{domain} {held_out}").shuffle(rows)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files; they are the same each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "local" / "domains")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for domain in FACTS:
        for split in ("train", "test"):
            rows = make_rows(domain, held_out=split == "test")
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (options.out / f"{domain}-{split}.jsonl").write_text(text, encoding="utf-8")
            print(f"{domain}-{split}.jsonl: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    main()
