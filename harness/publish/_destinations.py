"""Where a board goes: a folder, a branch of a git repository, or a repository of the Hugging Face Hub."""

import datetime
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness._printable import printable
from harness.errors import UserError
from harness.publish._site import Published, publish

if TYPE_CHECKING:
    from harness.publish._earlier import Make
    from harness.store import Store

__all__ = ["Destination", "Folder", "GitBranch", "HubRepo", "parse", "publish_to"]

_URL = re.compile(r"[a-z][a-z0-9+.-]+://|[\w.-]+@[\w.-]+:", re.IGNORECASE)
_KINDS: dict[str, Literal["dataset", "space"]] = {"datasets": "dataset", "spaces": "space"}


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    path: Path


@dataclass(frozen=True)
class GitBranch:
    """A branch of a git repository: `remote` is a URL, a path, or the name of a remote of the repository one is in."""

    remote: str
    branch: str


@dataclass(frozen=True)
class HubRepo:
    """A dataset or a static Space; `name` is `ORG/NAME`."""

    kind: Literal["dataset", "space"]
    name: str


Destination = Folder | GitBranch | HubRepo


def parse(text: str) -> Destination:
    """Read what `--to` was given: `DIR`, `git:REMOTE#BRANCH`, `hf:ORG/NAME` or `hf:spaces/ORG/NAME`.

    A folder whose name begins with `git:` or `hf:` is written `./git:…`.

    Raises:
        UserError: none of these.
    """
    from harness.publish._git_command import check_branch, check_remote, shown

    if text.startswith("git:"):
        remote, _, branch = text.removeprefix("git:").rpartition("#")
        if not remote or not branch:
            what = f"git:{shown(text.removeprefix('git:'))}"
            raise UserError(f"--to {printable(what)}: expected git:REMOTE#BRANCH, such as git:origin#gh-pages")
        check_remote(remote)
        check_branch(branch)
        return GitBranch(remote, branch)
    if text.startswith("hf:"):
        return _hub_repo(text)
    if not text.strip() or "\0" in text:
        raise UserError("--to: expected a folder, git:REMOTE#BRANCH or hf:ORG/NAME")
    if _URL.match(text):
        where = printable(shown(text))
        raise UserError(f"--to {where}: a URL is no folder; a git repository is given as git:{where}#BRANCH")
    return Folder(Path(text))


def publish_to(
    store: "Store",
    sweeps: Sequence[str],
    to: str,
    *,
    merge: Sequence[Path] = (),
    texts: bool = True,
    now: datetime.datetime | None = None,
) -> Published:
    """Publish the leaderboard of these sweeps to a folder, a branch or the Hub (`parse` says how each is written).

    A folder is one person's: an earlier export in it is replaced. A branch or a repository of the Hub may be shared:
    of the board that is there, the entries of other sweeps stay, those of the sweeps that are published now are
    replaced, and ranks are computed over all. To begin anew, remove the board (or the branch) there. `merge` is as for
    a folder; a clone of the branch can be merged too, and then an entry with other scores stays beside the new one.

    The site is made whole in a temporary folder and sent in one commit, so that nothing half-made is ever seen. A board
    that is there already and is the same but for its time makes no commit.

    Args:
        store: its shards are ingested first.
        sweeps: their ids, or suites' names; none: every suite's latest.
        to: the destination.
        merge: exports of others, whose entries join the board.
        texts: publish what was asked and answered beside the scores.
        now: the time that stands in the pages; the present one if not given.

    Raises:
        UserError: as of `publish`; or the destination is none, does not exist, refuses, or does not answer.
    """
    destination = parse(to)
    if isinstance(destination, Folder):
        return publish(store, sweeps, destination.path, merge=merge, texts=texts, now=now)
    done: list[Published] = []
    with tempfile.TemporaryDirectory(prefix="harness-publish-") as scratch:

        def make(earlier: Path | None) -> Path:
            site = Path(scratch) / f"site-{len(done)}"
            done.append(publish(store, sweeps, site, merge=merge, onto=earlier, texts=texts, now=now))
            return site

        place, changed = _sent(destination, make)
    return replace(done[-1], place=place, changed=changed)


def _sent(destination: GitBranch | HubRepo, make: "Make") -> tuple[str, bool]:
    if isinstance(destination, GitBranch):
        from harness.publish._git import push
        from harness.publish._git_command import shown

        changed = push(make, destination.remote, destination.branch)
        return f"{shown(destination.remote)}#{destination.branch}", changed
    from harness.publish._hub_push import push as push_to_hub

    return push_to_hub(make, destination.name, destination.kind)


def _hub_repo(text: str) -> HubRepo:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not marked so

    first, _, rest = text.removeprefix("hf:").partition("/")
    # `datasets/` is what the Hub's own addresses say.
    kind, name = _KINDS.get(first, "dataset"), rest if first in _KINDS else f"{first}/{rest}"
    problem = "" if name.count("/") == 1 else "not two names"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        problem = problem or str(error)
    if problem:
        raise UserError(
            f"--to {printable(text)}: expected hf:ORG/NAME (a dataset) or hf:spaces/ORG/NAME (a static Space), "
            f"such as hf:my-lab/leaderboard ({printable(problem)[:200]})"
        )
    return HubRepo(kind, name)
