"""Turns of a dialogue, and a dialogue as one text."""

from harness.method import Turns

__all__ = ["spoken", "turn"]


def turn(role: str, content: str) -> dict[str, str]:
    """One turn of a dialogue."""
    return {"role": role, "content": content}


def spoken(turns: Turns) -> str:
    """A dialogue as one text, as records, instructions and judges see it: a single turn is its content alone."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{t['role'].capitalize()}: {t['content']}" for t in turns)
