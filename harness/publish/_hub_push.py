"""A board to the Hugging Face Hub: a dataset or a static Space, in one commit."""

import contextlib
import filecmp
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness._hub import bound_waiting, hub_reason
from harness._printable import printable
from harness._secrets import redacted
from harness.errors import UserError
from harness.publish._earlier import Make, check_room, is_board, owned
from harness.publish._files import MANIFEST
from harness.publish._hub_card import MARK, card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["push"]

Kind = Literal["dataset", "space"]

_README = "README.md"
_MESSAGE = "Leaderboard published by posttrain-harness"
_TRIES = 2
_RACED = (409, 412)
_WAIT_S = 300.0
"""The Hub answers a commit of a thousand files when it has taken in all of them."""
_TEMPLATE = frozenset({"index.html", "style.css"})
_NEW_SPACE = _TEMPLATE | {".gitattributes", _README}
"""The files with which the Hub begins a static Space."""
_WELCOME = b"Welcome to your static Space"
_LONGEST = 300
_ADVICE = {
    400: "the Hub takes this for a bad request",
    401: "the Hub does not accept the token: log in again (`hf auth login`), or set HF_TOKEN to one that may write",
    402: "the Hub asks for a paid plan for this",
    403: "the token may not do this: it needs the permission to write there (https://huggingface.co/settings/tokens), "
    "and to create repositories where there is none yet",
    404: "the Hub knows no such user, organisation or repository, or not for this token: check the name",
    413: "that is more than the Hub takes at once: publish fewer sweeps, or without texts (--no-texts)",
    429: "too many requests for now: wait some minutes, then run it again",
}


def push(make: Make, name: str, kind: Kind = "dataset", *, message: str = _MESSAGE) -> tuple[str, bool]:
    """Put a board into a repository of the Hub, which is made if there is none (public, unless the organisation makes
    private ones); where that is, and False where the board is there already and nothing was committed.

    One commit on top of the head that was read, or none: where somebody commits meanwhile, all is done once more.
    Files of an earlier board give way to the new ones; all others stay. `README.md` carries the metadata that the Hub
    needs (`card`); one that somebody else wrote stays. The token is that of `hf auth login` or `HF_TOKEN`; it is never
    shown.

    Tested against a local server that speaks the Hub's API as huggingface_hub 1.33 uses it: creation, reading, small
    files within the commit, large ones by the LFS protocol, refusals. Not tested: the Hub itself, and Xet, by which
    huggingface_hub sends and reads large files where the package `hf_xet` is installed.

    Args:
        make: makes the site, given the folder of the board that is there or None.
        name: `ORG/NAME`.
        kind: of the repository.
        message: of the commit.

    Raises:
        UserError: the Hub is switched off here (HF_HUB_OFFLINE), there is no token, no access, no answer; or other
            files are in the way.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError("the Hub is switched off here (HF_HUB_OFFLINE=1): unset that, or publish to a folder")
    if not huggingface_hub.get_token():
        raise UserError("there is no token for the Hub: `hf auth login`, or set HF_TOKEN to one that may write")
    bound_waiting(_WAIT_S)
    repo = _Repo(huggingface_hub.HfApi(), name, kind)
    for _ in range(_TRIES):
        with tempfile.TemporaryDirectory(prefix="harness-hub-") as scratch:
            with _failures_told(repo.place):
                head = repo.head(Path(scratch))
                earlier = repo.board(head, Path(scratch))
                old = owned(earlier, repo.place) if earlier is not None else frozenset()
            site = make(earlier)
            new = {p.relative_to(site).as_posix(): p for p in site.rglob("*") if p.is_file()}
            others = head.files - old
            check_room(new, others - (_NEW_SPACE if head.fresh else frozenset()), repo.place)
            with _failures_told(repo.place):
                content: dict[str, Path | bytes] = {n: p for n, p in new.items() if not _same(earlier, n, p)}
                content |= repo.card(head, Path(scratch))
                left_over = _TEMPLATE & others if head.fresh else frozenset()
                gone = sorted(((old & head.files) | left_over) - new.keys())
                if not content and not gone:
                    return repo.url, False
                if repo.commit(head, content, gone, message):
                    return repo.url, True
    raise UserError(f"{repo.place}: others commit to it at the same time: nothing was published; run it again")


@dataclass(frozen=True)
class _Head:
    """A repository's last commit, the files of it, and whether nobody has put anything there yet."""

    commit: str
    files: frozenset[str]
    fresh: bool


@dataclass(frozen=True)
class _Repo:
    """A repository of the Hub."""

    api: "HfApi"
    name: str
    kind: Kind

    @property
    def place(self) -> str:
        return f"hf:{'spaces/' if self.kind == 'space' else ''}{self.name}"

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{self.kind}s/{self.name}"

    def head(self, scratch: Path) -> _Head:
        """The last commit of the repository, which is made where there is none.

        Raises:
            UserError: it is a Space of another kind, or has a `.gitignore`.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        look = self.api.space_info if self.kind == "space" else self.api.dataset_info
        fresh = False
        try:
            info = look(self.name)
        except RepositoryNotFoundError:
            sdk = "static" if self.kind == "space" else None
            self.api.create_repo(self.name, repo_type=self.kind, space_sdk=sdk, exist_ok=True)
            info, fresh = look(self.name), True
        if (sdk := getattr(info, "sdk", None)) not in (None, "static"):
            raise UserError(f"{self.place} is a Space of the kind {printable(str(sdk))[:40]!r}; expected a static one")
        files = frozenset(s.rfilename for s in info.siblings or [])
        if ".gitignore" in files:
            # The Hub leaves out what it matches, without a word.
            raise UserError(f"{self.place} has a .gitignore, which could keep parts of the board out: remove it first")
        found = _Head(str(info.sha), files, fresh)
        return replace(found, fresh=fresh or self._untouched(found, scratch))

    def board(self, head: _Head, scratch: Path) -> Path | None:
        """The board that is there, in a folder; None where there is none."""
        if MANIFEST not in head.files or not is_board(self._read(head, MANIFEST, scratch)):
            return None
        folder = scratch / "earlier"
        folder.mkdir()
        shutil.move(scratch / MANIFEST, folder / MANIFEST)
        names = sorted(owned(folder, self.place) & head.files)
        self.api.snapshot_download(
            self.name, repo_type=self.kind, revision=head.commit, allow_patterns=names, local_dir=folder
        )
        # What the download notes for itself.
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        return folder

    def card(self, head: _Head, scratch: Path) -> dict[str, Path | bytes]:
        """The README.md to write; none where the same is there, or one of somebody else."""
        ours = card(self.name, self.kind)
        if _README in head.files and not head.fresh:
            there = self._read(head, _README, scratch)
            if there == ours or MARK.encode() not in there:
                return {}
        return {_README: ours}

    def commit(self, head: _Head, content: Mapping[str, Path | bytes], gone: Sequence[str], message: str) -> bool:
        """One commit on top of a head; False where that is the head no more."""
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        operations: list[CommitOperationAdd | CommitOperationDelete | CommitOperationCopy] = [
            *(CommitOperationAdd(n, c) for n, c in sorted(content.items())),
            *(CommitOperationDelete(n, is_folder=False) for n in gone),
        ]
        try:
            with warnings.catch_warnings():
                # A Space holds its board's Parquet files on purpose.
                warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
                self.api.create_commit(
                    self.name, operations, commit_message=message, repo_type=self.kind, parent_commit=head.commit
                )
        except HfHubHTTPError as error:
            if error.response.status_code in _RACED:
                return False
            raise
        return True

    def _untouched(self, head: _Head, scratch: Path) -> bool:
        """Whether it is a new Space, as the Hub fills it for a beginning."""
        if self.kind != "space" or "index.html" not in head.files or not head.files <= _NEW_SPACE:
            return False
        return _WELCOME in self._read(head, "index.html", scratch)

    def _read(self, head: _Head, file: str, scratch: Path) -> bytes:
        path = self.api.hf_hub_download(self.name, file, repo_type=self.kind, revision=head.commit, local_dir=scratch)
        return Path(path).read_bytes()


def _same(earlier: Path | None, name: str, path: Path) -> bool:
    there = None if earlier is None else earlier / name
    return there is not None and there.is_file() and filecmp.cmp(there, path, shallow=False)


@contextlib.contextmanager
def _failures_told(place: str) -> Iterator[None]:
    """What the Hub or the way to it does wrong is told in a line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise UserError(f"{place}: {reason}") from error


def _reason(error: BaseException) -> str | None:
    """Why the Hub did not take it, and what to do; None where that is no failure of the Hub."""
    import httpx

    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for one in chain:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int) and status >= 400:
            text = getattr(one, "server_message", None)
            said = f" (it says: {_line(text)})" if text else ""
            return f"{_ADVICE.get(status) or f'the Hub answered with an error ({status}): run it again later'}{said}"
    if any(isinstance(one, httpx.TimeoutException) for one in chain):
        return (
            "the Hub did not answer in time, and whether it took the board in is not known: run it again, which "
            "commits nothing where it did"
        )
    if any(isinstance(one, httpx.TransportError) for one in chain):
        return f"the Hub cannot be reached ({_line(str(chain[-1]))}): check the network, or publish to a folder"
    # Also what its storages refuse (a quota), which the library tells by errors of these kinds.
    told = isinstance(error, ValueError | RuntimeError)
    return hub_reason(error) or (f"the Hub did not take the board: {_line(str(error))}" if told else None)


def _line(text: str) -> str:
    return printable(redacted(" ".join(text.split())))[:_LONGEST]
