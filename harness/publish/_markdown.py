"""Markdown that shows every text as it stands: what is not ours is escaped, or in a fence that it cannot end."""

import re
from collections.abc import Sequence

__all__ = ["cell", "fence", "table"]

# As entities, not behind backslashes: two of these would look like the path of a network share.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SPECIAL = re.compile(r"[\\`*_{}\[\]#!|~$<>&@:]|(?<=www)\.")


def cell(value: object) -> str:
    """Text in a line, without markup, links or mentions."""
    line = " ".join(_CONTROL.sub("\ufffd", str(value)).split())
    return _SPECIAL.sub(lambda found: f"&#{ord(found.group())};", line)


def fence(text: str, kind: str = "") -> str:
    """A block of code, its fence longer than any in the text."""
    text = _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{kind}\n{text.rstrip()}\n{marks}"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; – where there is nothing."""
    lines = [headers, ["---"] * len(headers), *([("–" if c is None else cell(c)) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
