"""Text from elsewhere (models, files, servers) as a terminal may show it."""

import re

__all__ = ["printable"]

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters of ASCII and Latin-1, but for tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that change the direction of what follows
    "\u2028\u2029\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff"  # halves of characters, which no terminal can be sent
    "\U000e0000-\U000e007f"  # tags: letters that nobody sees
    "]"
)


def printable(text: str) -> str:
    r"""The text with what could drive a terminal, or hide in it, written out: escape becomes the four letters \x1b.

    Newlines and tabs stay.
    """
    return _UNSAFE.sub(lambda found: _written(ord(found.group())), text)


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
