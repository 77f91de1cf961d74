"""Nothing of a machine in what is published: no path, no name of a user or host, no secret."""

import getpass
import os
import re
import socket
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness._secrets import redacted

__all__ = ["Scrubber"]

_COMPONENT = r"""[^\s/\\:*?"'<>|,;()\[\]{}`$&]+"""
_FILE_URL = re.compile(r"""\bfile:/+[^\s"'<>)\]]*""", re.IGNORECASE)
_WINDOWS = re.compile(rf"(?<![A-Za-z0-9])[A-Za-z]:[\\/]+(?:{_COMPONENT}[\\/]+)*{_COMPONENT}[\\/]*")
_SHARE = re.compile(rf"(?<![\w\\])\\\\[\w.$-]+(?:\\+{_COMPONENT})+")
# A slash after a letter, a dot, a bracket or `<` begins no path: and/or, ./here, f(x)/2, </p>. After a colon only one
# that no other follows does: a URL has two.
_BEGIN = r"(?:(?<![\w.~<\\/%)\]}:])/+|(?<=:)/(?!/))"
_POSIX = re.compile(rf"{_BEGIN}{_COMPONENT}(?:/+{_COMPONENT})+/*")
_TOPS = (
    "bin|boot|dev|etc|home|lib|media|mnt|opt|proc|root|run|scratch|srv|sys|tmp|usr|var|work|workspace|Users|Volumes|"
    "Applications|Library|private|kaggle|gpfs|lustre|nfs"
)
"""Folders that show a path by themselves; of another name alone (`/think`) one cannot tell."""
_TOP = re.compile(rf"{_BEGIN}(?:{_TOPS})(?![\w-])/*")
_WHOLE = re.compile(r"(?:/|~/|[A-Za-z]:[\\/]|\\\\)[^\n]*")
_YAML_VALUE = re.compile(
    r"^(\s*(?:-\s+)*(?:[\w.-]+:\s+)?)(/[^\n#]*/[^\n#]*?|[A-Za-z]:\\[^\n#]*?)(\s*(?:\s#.*)?)$", re.M
)
_SERVER = re.compile(r"""(https?://)(\[[0-9A-Fa-f:.]+\]|[^\s/:?#'"\[\]{},]+)(:\d+)?""")
_INSIDE = re.compile(
    r"[\d.]+|\[.*\]|[^.]+|.*\.(?:local|localdomain|internal|intranet|lan|corp|home|private)", re.IGNORECASE
)
"""Servers that nobody outside can name: by address, without a domain, or in one that is not public."""
_AGAIN = re.compile(r"(\[[\w ]+ removed\])(?: removed\])+")

_COMMON_NAMES = frozenset(
    {"admin", "app", "base", "data", "debian", "dev", "docker", "guest", "harness", "host", "hostname", "jovyan"}
    | {
        "localhost",
        "main",
        "model",
        "name",
        "node",
        "nobody",
        "none",
        "null",
        "root",
        "removed",
        "runner",
        "secret",
        "sudo",
        "sweep",
    }
    | {"system", "test", "ubuntu", "unknown", "user", "username", "users", "vagrant", "worker"}
)
"""Names of accounts and machines that name nobody, and stand in many a text."""
_SHORTEST = 3
_BETWEEN, _TOGETHER = "\n\x00\n", 2**18
"""What stands between texts that are looked at together: no pattern reaches across it."""
_PLACES_OF_USERS = ("home", "users")
_NAMING = frozenset({"host", "hostname", "node", "nodename", "user", "username", "login", "home", "cwd", "ip"})
"""Keys of an environment whose values are left out whatever they are."""


@dataclass(frozen=True)
class Scrubber:
    """Cleans texts, and says what is still in one. `roots` are folders known by name wherever they stand.

    Paths are cut to their last part, secrets and names are replaced by a word in brackets. Names of other machines than
    the one that publishes are known only where they stand in a path.
    """

    roots: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    _patterns: "list[tuple[str, re.Pattern[str]]]" = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Make the patterns once: every published text meets them."""
        found = self._patterns
        found += [("a file URL", _FILE_URL), ("an absolute path", _WINDOWS), ("a network path", _SHARE)]
        for root in sorted({r.rstrip("/\\") for r in self.roots}, key=len, reverse=True):
            # A single folder such as /root is a part of many a relative path too.
            if root.count("/") + root.count("\\") > 1:
                for form in {root, root.replace("/", "\\/"), urllib.parse.quote(root, safe="")}:
                    found.append(("an absolute path", re.compile(rf"{re.escape(form)}(?:\\?/+{_COMPONENT})*(?!\w)")))
        found += [("an absolute path", _POSIX), ("an absolute path", _TOP)]
        for what, names in (("user", self.users), ("host", self.hosts)):
            for name in sorted({n for n in names if _telling(n)}, key=len, reverse=True):
                pattern = rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])"
                found.append((what, re.compile(pattern, re.IGNORECASE if what == "host" else 0)))

    @classmethod
    def here(cls, *places: Path) -> "Scrubber":
        """One that knows this process's user, machine and folders, and these places."""
        folders = [Path.home(), Path.cwd(), *places]
        roots = {str(p) for folder in folders for p in (folder.absolute(), folder.resolve())}
        users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME")} | {Path.home().name, _user()}
        names = {socket.gethostname(), os.environ.get("HOSTNAME", ""), os.environ.get("COMPUTERNAME", "")}
        hosts = names | {name.partition(".")[0] for name in names}
        return cls(tuple(sorted(roots)), tuple(sorted(users)), tuple(sorted(hosts)))

    def clean(self, text: str) -> str:
        """The text as it may be published; cleaning it again changes nothing."""
        while (cleaner := self._once(text)) != text:
            # What is left of one path may be another with what follows it.
            text = cleaner
        return text

    def _once(self, text: str) -> str:
        text = _AGAIN.sub(r"\1", redacted(text))
        for what, pattern in self._patterns:
            text = pattern.sub(f"[{what} removed]" if what in ("user", "host") else _last, text)
        return text

    def clean_all(self, texts: Sequence[str]) -> list[str]:
        """Each text cleaned: many at once, since looking up what is secret here takes longer than a short text."""
        cleaned: list[str] = []
        for part in _parts(texts):
            together = self.clean(_BETWEEN.join(part)).split(_BETWEEN)
            # A text with the separator in it, or half a private key, which reaches to the end of whatever it is in.
            cleaned += together if len(together) == len(part) else map(self.clean, part)
        return cleaned

    def name(self, text: str) -> str:
        """A text that is a name or a path as a whole, spaces and all: of a path the last part."""
        return self.clean(_last_of(text) if _WHOLE.fullmatch(text) else text)

    def yaml(self, text: str) -> str:
        """A YAML text; a value that is a path is known by its place, spaces and all."""
        return self.servers(_YAML_VALUE.sub(lambda m: f"{m[1]}{_last_of(m[2])}{m[3]}", text))

    def servers(self, text: str) -> str:
        """A text of settings, in which a URL is an endpoint: servers of one's own go by `private.example`."""

        def public(found: re.Match[str]) -> str:
            return f"{found[1]}private.example" if found[3] or _INSIDE.fullmatch(found[2]) else found[0]

        return self.clean(_SERVER.sub(public, text))

    def value(self, value: object) -> object:
        """JSON data with every text in it cleaned, and what goes by the name of a host or user left out."""
        if isinstance(value, str):
            return self.name(value)
        if isinstance(value, dict):
            return {self.clean(str(k)): self.value(v) for k, v in value.items() if str(k).lower() not in _NAMING}
        return [self.value(v) for v in value] if isinstance(value, list | tuple) else value

    def problem(self, text: str, *, names: bool = True) -> str | None:
        """What stands in a text that must not be published, in words that do not repeat it; None for nothing.

        Without `names`, those of users and hosts are no problem.
        """
        if _AGAIN.sub(r"\1", redacted(text)) != text:
            return "a secret (token, password or key)"
        own = ("user", "host")
        found = next((what for what, p in self._patterns if (names or what not in own) and p.search(text)), None)
        return {"user": "the name of a user here", "host": "the name of this machine"}.get(found or "", found)

    def first_problem(self, texts: Iterable[str], *, names: bool = True) -> str | None:
        """The first problem that one of the texts has."""
        found = (self.problem(_BETWEEN.join(part), names=names) for part in _parts(texts))
        return next((one for one in found if one is not None), None)


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in their order, in lists of about `_TOGETHER` characters."""
    part: list[str] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size > _TOGETHER:
            yield part
            part, size = [], 0
    if part:
        yield part


def _telling(name: str) -> bool:
    return len(name) >= _SHORTEST and name.lower() not in _COMMON_NAMES


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a number that has no name.
        return ""


def _last(found: re.Match[str]) -> str:
    return _last_of(found.group())


def _last_of(path: str) -> str:
    whole = urllib.parse.unquote(path) if path.lower().startswith("file:") else path.replace("%2F", "/")
    parts = [p for p in re.split(r"[\\/]+", whole) if p]
    if len(parts) > 1 and parts[-2].lower() in _PLACES_OF_USERS:
        return "~"
    last = parts[-1] if parts else ""
    return "" if last.lower() in ("file:", "~") else last
