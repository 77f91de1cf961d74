"""A board onto a branch of a git repository, as one commit on top of what is there."""

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.publish._earlier import Make, check_room, is_board, owned
from harness.publish._files import MANIFEST
from harness.publish._git_command import Done, check_branch, check_remote, git, identity, needed, resolved, shown

__all__ = ["push"]

_FILE = ("100644", "100755")
_HOST_FILES = {
    # GitHub Pages would run the site through Jekyll.
    ".nojekyll": b"",
    # Line ends that git changes on some machines would change the files' digests.
    ".gitattributes": b"* -text\n",
}
_MESSAGE = "Leaderboard published by posttrain-harness"
_RACED = re.compile(
    r"fetch first|non-fast-forward|stale info|cannot lock ref|failed to update ref|incorrect old value|already exists"
)
_TRIES = 2
_CHUNK = 2**20


def push(make: Make, remote: str, branch: str, *, message: str = _MESSAGE) -> bool:
    """Put a board on a branch with the `git` command; False where it is there already, and nothing was pushed.

    The branch is fetched (its last commit only) into a temporary bare repository, which is removed afterwards; nothing
    is checked out, no repository of the user's is touched, and the branch moves by one ordinary push or not at all.
    An empty repository or a new branch works: the commit then has no parent. On a branch that is there, the files of
    its earlier board give way to the new ones, and all others stay (`CNAME`, a README, other pages). `.nojekyll` and
    `.gitattributes` are added where there are none. Where somebody pushes at the same time, all is done once more on
    top of that.

    The author is who git says the user is, else `posttrain-harness <posttrain-harness@localhost>`. Credentials are
    git's own (helper, agent, URL); git asks for nothing. They are never shown, and never in what is pushed.

    Args:
        make: makes the site, given the folder of the board on the branch or None.
        remote: URL, path, or name of a remote of the current folder's repository.
        branch: its short name.
        message: of the commit.

    Raises:
        UserError: a remote or branch that git refuses, no access, other files in the way, a push that is refused (a
            hook's words are in the message), or the branch moved twice meanwhile.
    """
    check_remote(remote)
    check_branch(branch)
    with tempfile.TemporaryDirectory(prefix="harness-git-") as scratch:
        at = _Branch(Path(scratch) / "repository", resolved(remote), branch)
        needed(git(["init", "--quiet", "--bare", "--template=", str(at.repository)]), "no temporary repository")
        said = ""
        for attempt in range(_TRIES):
            head = at.fetch()
            there = at.files(head) if head else {}
            earlier = at.board(there, Path(scratch) / f"earlier-{attempt}")
            tree = at.tree(head, there, earlier, make(earlier))
            if head and tree == at.text("rev-parse", f"{head}^{{tree}}"):
                return False
            commit = at.text("commit-tree", tree, "-m", message, *(["-p", head] if head else []), more=identity())
            done = at.git("push", "--porcelain", "--no-recurse-submodules", "--no-follow-tags", *at.to(commit))
            if done.code == 0:
                return True
            refusals = [x for x in done.out.decode(errors="replace").splitlines() if x.startswith("!")]
            said = shown("\n".join(x.rpartition("\t")[2] for x in refusals))
            if not _RACED.search(said):
                needed(done, f"{at.place} did not take the board{f': {said}' if said else ''}")
    raise UserError(f"{at.place} is pushed to by others at the same time ({said}): nothing was published; run it again")


@dataclass(frozen=True)
class _Branch:
    """A branch of a remote, and the bare repository in which its next commit is made."""

    repository: Path
    remote: str
    branch: str

    @property
    def place(self) -> str:
        return f"{shown(self.remote)}#{self.branch}"

    def git(self, *arguments: str, given: bytes = b"", at: Path | None = None) -> Done:
        return git(arguments, repository=self.repository, given=given, at=at)

    def text(
        self, *arguments: str, given: bytes = b"", at: Path | None = None, more: Mapping[str, str] | None = None
    ) -> str:
        """What a command on the temporary repository has written."""
        done = git(arguments, repository=self.repository, given=given, at=at, more=more)
        return needed(done, f"no commit for {self.place}").decode().strip()

    def to(self, commit: str) -> list[str]:
        return ["--", self.remote, f"{commit}:refs/heads/{self.branch}"]

    def fetch(self) -> str | None:
        """The branch's last commit, fetched; None where there is no such branch."""
        ref = f"refs/heads/{self.branch}"
        what = f"{self.place} cannot be read"
        listed = needed(self.git("ls-remote", "--", self.remote, ref), what).decode(errors="replace")
        if ref not in (line.partition("\t")[2] for line in listed.splitlines()):
            return None
        depth = ["--depth=1", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--quiet"]
        needed(self.git("fetch", *depth, "--", self.remote, f"+{ref}:{ref}"), what)
        return self.text("rev-parse", ref)

    def files(self, head: str) -> dict[str, tuple[str, str]]:
        """Path → mode and object of every file of a commit."""
        listed = needed(self.git("ls-tree", "-r", "-z", head), f"{self.place} cannot be read")
        found: dict[str, tuple[str, str]] = {}
        for line in filter(None, listed.split(b"\0")):
            facts, _, path = line.partition(b"\t")
            mode, _, name = facts.decode().split()
            found[path.decode(errors="surrogateescape")] = mode, name
        return found

    def board(self, there: Mapping[str, tuple[str, str]], folder: Path) -> Path | None:
        """The board among the files, written to a folder; None where there is none."""
        if there.get(MANIFEST, ("", ""))[0] not in _FILE:
            return None
        folder.mkdir()
        self._write(folder, {MANIFEST: there[MANIFEST][1]})
        if not is_board((folder / MANIFEST).read_bytes()):
            return None
        names = [n for n in sorted(owned(folder, self.place)) if there.get(n, ("", ""))[0] in _FILE]
        self._write(folder, {n: there[n][1] for n in names})
        return folder

    def tree(self, head: str | None, there: Mapping[str, tuple[str, str]], earlier: Path | None, site: Path) -> str:
        """The tree of the next commit: what is there, without the earlier board, with the site."""
        old = owned(earlier, self.place) if earlier is not None else frozenset()
        new = sorted(p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file())
        check_room(new, there.keys() - old, self.place)
        # Bytes as they are: no filter and no line ends of the user's settings or the branch's attributes.
        hashed = self.text("hash-object", "-w", "--no-filters", "--stdin-paths", given=_lines(new), at=site).split()
        entries = dict(zip(new, hashed, strict=True))
        for name, content in _HOST_FILES.items():
            if name not in there:
                entries[name] = self.text("hash-object", "-w", "--stdin", given=content)
        zero = "0" * len(hashed[0])
        gone = [f"0 {zero}\t{name}" for name in sorted(old & there.keys() - entries.keys())]
        lines = [*gone, *(f"100644 {name}\t{path}" for path, name in entries.items())]
        index = {"GIT_INDEX_FILE": f"{self.repository}.index"}
        self.text("read-tree", *([head] if head else ["--empty"]), more=index)
        given = b"".join(line.encode() + b"\0" for line in lines)
        self.text("update-index", "-z", "--index-info", given=given, more=index)
        return self.text("write-tree", more=index)

    def _write(self, folder: Path, objects: Mapping[str, str]) -> None:
        """Write objects of the repository as files of a folder, by their paths in it."""
        raw = self.repository.with_name("objects")
        given = _lines(objects.values())
        done = git(["cat-file", "--batch"], repository=self.repository, given=given, to=raw)
        needed(done, f"{self.place} cannot be read")
        with raw.open("rb") as all_of_them:
            for name in objects:
                # `<object> blob <size>`, the content, and a line end.
                left = int(all_of_them.readline().split()[2])
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    while left and (part := all_of_them.read(min(left, _CHUNK))):
                        left -= file.write(part)
                all_of_them.read(1)
        raw.unlink()


def _lines(texts: Iterable[str]) -> bytes:
    return b"".join(text.encode() + b"\n" for text in texts)
