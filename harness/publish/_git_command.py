"""Running git: nothing is asked for, no helper programs as transports, and no credentials in what is said."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness._printable import printable
from harness._secrets import redacted
from harness.errors import UserError

__all__ = ["Done", "check_branch", "check_remote", "git", "identity", "needed", "resolved", "shown"]

_WAIT_S = 1800
_OF_ANOTHER = frozenset(
    {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"}
    | {"GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_QUARANTINE_PATH", "SSH_ASKPASS"}
)
"""Variables that a hook of another repository would hand down, and the program that would ask for a password."""
_QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "SSH_ASKPASS_REQUIRE": "never",
    "GCM_INTERACTIVE": "never",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    "LC_ALL": "C",
    "TZ": "UTC",
}
_USER_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s'\"]*@", re.IGNORECASE)
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]*::")
_NOBODY = ("posttrain-harness", "posttrain-harness@localhost")
_LINES, _LONGEST = 20, 2000
_REASONS = (
    (
        r"terminal prompts disabled|Authentication failed|Permission denied|could not read (?:Username|Password)|"
        r"Host key verification failed|returned error: 40[13]",
        "git asks for no password here: set up a credential helper or an SSH key first (a `git push` by hand must work "
        "without a question)",
    ),
    (
        r"not appear to be a git repository|[Rr]epository .*not (?:found|exist)|does not exist|returned error: 404",
        "check the address; `git ls-remote` of it must work",
    ),
    (
        r"Could not resolve host|Failed to connect|Connection (?:refused|timed out|reset)|Couldn't connect|Network is",
        "it cannot be reached: check the network, and run it again",
    ),
    (r"transport '[^']*' not allowed", "expected https, ssh, git, or a folder"),
    (r"No space left on device", "make room, or set TMPDIR to a folder on another disk"),
)


@dataclass(frozen=True)
class Done:
    """How a command ended; `said` is the end of its standard error, as it may be shown."""

    code: int
    out: bytes
    said: str


def git(
    arguments: Sequence[str],
    *,
    repository: Path | None = None,
    given: bytes = b"",
    at: Path | None = None,
    more: Mapping[str, str] | None = None,
    to: Path | None = None,
) -> Done:
    """Run git; whatever it says has no credentials in it.

    Args:
        arguments: of the command.
        repository: a bare one to work in; else that of the current folder.
        given: standard input.
        at: the folder to run in; else the current one.
        more: environment variables.
        to: the file for its standard output, where that may be large; else it is returned.

    Raises:
        UserError: git is not there, or takes more than half an hour.
    """
    program = shutil.which("git")
    if program is None:
        raise UserError("git is not installed, or not on PATH: install it, or publish to a folder (--to DIR)")
    kept = {k: v for k, v in os.environ.items() if k not in _OF_ANOTHER and not k.startswith("GIT_TRACE")}
    where = {} if repository is None else {"GIT_DIR": str(repository)}
    output = contextlib.nullcontext(subprocess.PIPE) if to is None else to.open("wb")
    with (
        output as pipe,
        subprocess.Popen(
            # A repository that is gone in a moment needs no tidying, least of all by a process that outlives it.
            [program, "-c", "gc.auto=0", "-c", "maintenance.auto=false", *arguments],
            env={**kept, **_QUIET, **where, **(more or {})},
            cwd=at,
            stdin=subprocess.PIPE,
            stdout=pipe,
            stderr=subprocess.PIPE,
            # Without a terminal of its own ssh cannot ask for anything either.
            start_new_session=True,
        ) as child,
    ):
        try:
            out, err = child.communicate(given, _WAIT_S)
        except subprocess.TimeoutExpired:
            raise UserError(f"git {arguments[0]} did not end within {_WAIT_S} s: check the network") from None
        finally:
            # With what it has started: a transport would hold the pipes open.
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    return Done(child.returncode, out or b"", _clean(err.decode(errors="replace")))


def needed(done: Done, what: str) -> bytes:
    """What a command has written.

    Raises:
        UserError: it failed; `what` says what it was for.
    """
    if done.code == 0:
        return done.out
    advice = next((f"\n{text}" for pattern, text in _REASONS if re.search(pattern, done.said)), "")
    raise UserError(f"{what}: git says:\n{done.said or f'nothing (status {done.code})'}{advice}")


def shown(remote: str) -> str:
    """A remote as it may be shown: without user and password in a URL."""
    return redacted(_USER_IN_URL.sub(r"\1", remote))


def check_remote(remote: str) -> None:
    """Refuse what git would take for an option, or for a program to run.

    Raises:
        UserError: as said.
    """
    if remote.startswith("-") or remote != printable(remote) or remote.strip() != remote or "\n" in remote:
        raise UserError(f"--to git:{printable(shown(remote))}#…: expected the URL, path or name of a git repository")
    if _HELPER.match(remote):
        raise UserError(
            f"--to git:{shown(remote)}#…: transport helpers (NAME::…) can run any program and are not used; "
            "expected https, ssh, git, or a folder"
        )


def check_branch(branch: str) -> None:
    """Refuse what is no name of a branch.

    Raises:
        UserError: git refuses it, or it is a full name of a ref.
    """
    odd = branch.startswith(("-", "refs/")) or branch == "HEAD" or "\0" in branch
    if odd or git(["check-ref-format", f"refs/heads/{branch}"]).code != 0:
        raise UserError(f"--to git:…#{printable(branch)}: git allows no such branch; expected a name such as gh-pages")


def resolved(remote: str) -> str:
    """The URL to push to, where a remote of the current folder's repository is meant by its name; else the same."""
    if re.fullmatch(r"[\w.-]+", remote) and not Path(remote).exists():
        found = git(["remote", "get-url", "--push", remote])
        if found.code == 0:
            url = found.out.decode(errors="replace").strip()
            check_remote(url)
            return url
    return remote


def identity() -> dict[str, str]:
    """Who commits: the user as git knows them, else nobody in particular, never a name of the account or machine."""
    found: dict[str, str] = {}
    for role in ("AUTHOR", "COMMITTER"):
        # Without this, git would make up user@host.
        said = git(["-c", "user.useConfigOnly=true", "var", f"GIT_{role}_IDENT"])
        known = re.fullmatch(r"(.+) <([^<>]+)> \d+ [+-]\d{4}\n?", said.out.decode(errors="replace"))
        name, mail = (known[1], known[2]) if said.code == 0 and known is not None else _NOBODY
        found |= {f"GIT_{role}_NAME": name, f"GIT_{role}_EMAIL": mail}
    return found


def _clean(text: str) -> str:
    lines = [line.rstrip() for line in shown(text).splitlines() if line.strip()]
    return printable("\n".join(lines[-_LINES:]))[-_LONGEST:]
