"""Keeping tokens and passwords out of whatever is stored, shown or logged."""

import io
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

__all__ = ["RedactedStream", "first_secret", "redacted"]

_SECRET_WORDS = frozenset(
    {"TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "APIKEY"}
)
_SECRET_ENDS = ("_KEY", "_KEY_ID", "_PAT", "_PWD")
_PLACE_ENDS = ("_FILE", "_PATH", "_DIR", "_URI", "_URL")
_SHORTEST = 8
"""Characters of a value that is taken for a secret: a shorter one (`1`, `false`) would blot out half of every text."""

_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("hub token", re.compile(r"\bhf_[A-Za-z0-9]{16,}")),
    ("API key", re.compile(r"\b(?:sk|pk|rk)-(?:[A-Za-z0-9]+-)*[A-Za-z0-9_]{20,}")),
    ("AWS key", re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")),
    ("GitHub token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})")),
    ("private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)),
)
"""Secrets that show by themselves, wherever they are from."""

_MARKED = re.compile(
    r"(?P<name>(?:[?&;]|\b)(?:access_token|auth_token|token|api_?key|password|passwd)=|[?&;](?:key|sig|signature)="
    r"|\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|token)\s+)(?P<value>[^\s&;'\"<>()]{6,})"
    r"|(?P<bearer>\bbearer\s+)(?P<long>[^\s&;'\"<>()]{16,})",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^\s/@:'\"]*):(?P<value>[^\s/@'\"]+)@", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text with every secret replaced by its name in brackets.

    Secrets are the values (8 characters or more) of environment variables whose names say so (`HF_TOKEN`,
    `OPENAI_API_KEY`, `AWS_SECRET_ACCESS_KEY`, …), the token that `hf auth login` has stored, passwords and tokens in
    URLs and authorization headers, and what has the shape of a well-known kind of token.
    """
    for name, value in _known(os.environ):
        for form in _forms(value):
            text = text.replace(form, f"[{name} removed]")
    text = _IN_URL.sub(r"\g<scheme>[password removed]@", text)
    text = _MARKED.sub(lambda found: f"{found['name'] or found['bearer']}[secret removed]", text)
    for name, shape in _SHAPES:
        text = shape.sub(f"[{name} removed]", text)
    return text


def first_secret(text: str) -> tuple[str, int] | None:
    """What kind of secret stands in a text, and where it begins (characters from 0); None where there is none."""
    found = [(text.find(form), f"the value of {name}") for name, value in _known(os.environ) for form in _forms(value)]
    found += [(match.start(), f"a {name}") for name, shape in _SHAPES if (match := shape.search(text))]
    found += [(match.start("value"), "a password in a URL") for match in _IN_URL.finditer(text)]
    first = min((pair for pair in found if pair[0] >= 0), default=None)
    return None if first is None else (first[1], first[0])


def _known(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    found = {v: k for k, v in environment.items() if _is_secret(k) and len(v.strip()) >= _SHORTEST}
    if (stored := _stored_token(environment)) is not None and len(stored) >= _SHORTEST:
        found.setdefault(stored, "hub token")
    # The longest first: one secret may begin like another, and its rest would stay.
    for value in sorted(found, key=len, reverse=True):
        yield found[value], value.strip()


def _is_secret(name: str) -> bool:
    upper = name.upper()
    if upper.endswith(_PLACE_ENDS):
        return False
    return upper.endswith(_SECRET_ENDS) or not _SECRET_WORDS.isdisjoint(re.split(r"[^A-Z0-9]+", upper))


def _stored_token(environment: Mapping[str, str]) -> str | None:
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    path = Path(environment.get("HF_TOKEN_PATH") or Path(home) / "token")
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError):
        return None


def _forms(value: str) -> list[str]:
    """A value as it stands, and as it stands in JSON, in a repr and in a URL."""
    written = (value, json.dumps(value)[1:-1], repr(value)[1:-1], urllib.parse.quote(value, safe=""))
    return list(dict.fromkeys(written))


class RedactedStream(io.TextIOBase):
    """A text stream that writes to another with secrets removed: for the log of a worker process.

    A line is held back until it ends or is flushed, so that a secret written in pieces is seen whole.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._held = stream, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property here, as the other stream decides it
        """The other stream's."""
        return self._stream.encoding

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The other stream's: what is written there by number is not seen here."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the other stream is a terminal."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Write text; whole lines go on at once."""
        lines, newline, self._held = (self._held + text).rpartition("\n")
        if newline:
            self._stream.write(redacted(lines) + newline)
        if len(self._held) > 2**16:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what was held back."""
        if self._held:
            self._stream.write(redacted(self._held))
            self._held = ""
        self._stream.flush()
