"""Where artifacts lie, and what makes one complete and sound."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness._digests import digest_problem, list_files, size_problem, text_digest
from harness._disk import replace, sync, writing
from harness.errors import StorageError, UserError
from harness.models import resolve_model, sync_folder

__all__ = ["Folders"]

_MANIFEST = "stage.json"
_FILES, _DIGEST = "files", "sha256"
"""What the manifest holds beside what it was given: the artifact's files, and its own digest."""


class Folders:
    """The artifacts below a results folder: `artifacts/<key>/`, complete once `stage.json` is there.

    The manifest lists every file with its size and sha256. One of before, which lists none, counts as complete.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self.artifacts = results / "artifacts"
        self.checkpoints = results / "checkpoints"
        """What a stage that was interrupted goes on from, in a folder named by its key."""
        self.votes = results / "votes"
        """What judges behind endpoints have said, by content: no vote is paid twice."""

    def has(self, key: str) -> bool:
        """Whether the artifact is complete: its manifest is whole, and every file is there in its size.

        Contents are not read: see `check`.
        """
        return self._incomplete(key) is None

    def holds(self, key: str) -> bool:
        """Whether something lies in the artifact's place, sound or not."""
        return os.path.lexists(self.artifacts / key)

    def check(self, key: str) -> str | None:
        """What is wrong with the artifact, or None. Its files are read once by a process, unless they change."""
        problem = self._incomplete(key)
        return problem or digest_problem(self.artifacts / key, self._read(key).get(_FILES, {}))

    def set_aside(self, key: str) -> Path:
        """Take a damaged artifact out of use: it is renamed, kept for a look at it, and never used again.

        Raises:
            StorageError: the disk refuses.
        """
        number, aside = 1, self.artifacts / f".damaged-{key}"
        while os.path.lexists(aside):
            number += 1
            aside = self.artifacts / f".damaged-{key}-{number}"
        with writing(self.artifacts):
            (self.artifacts / key).rename(aside)
            sync(self.artifacts)
        return aside

    def manifest(self, key: str) -> dict[str, Any]:
        """What was written down of a complete artifact when it was made.

        Raises:
            StorageError: the manifest cannot be read.
        """
        try:
            found = self._read(key)
        except (OSError, ValueError) as error:
            raise _damaged(self.artifacts / key, str(error)) from error
        return {k: v for k, v in found.items() if k not in (_FILES, _DIGEST)}

    def model(self, reference: str) -> Path:
        """The folder of a model reference: an artifact's key, or the name of a base model (`model:<name>`).

        An artifact is checked (see `check`) before it is used.

        Raises:
            UserError: neither.
            StorageError: the artifact is damaged. The sweep finds that out when it begins, sets it aside and has it
                computed again: this is one that was damaged since.
        """
        if reference.startswith("model:"):
            return resolve_model(reference.removeprefix("model:"))
        if not self.holds(reference):
            raise UserError(f"no complete artifact {reference} in {self.artifacts}")
        if problem := self.check(reference):
            raise _damaged(self.artifacts / reference, problem)
        return self.artifacts / reference

    def put(self, key: str, manifest: Mapping[str, object], write: Callable[[Path], None]) -> Path:
        """Write an artifact aside, sync it, write the manifest last, and rename: half an artifact is never visible.

        Raises:
            StorageError: the disk refuses; nothing of the artifact is left then.
        """
        done = self.artifacts / key
        with writing(self.results):
            self.artifacts.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.artifacts))
        try:
            with writing(self.artifacts):
                write(aside)
                sync_folder(aside)
                # As JSON gives it back: a key that is a number comes back as a text, and sorts otherwise.
                content = json.loads(json.dumps({**manifest, _FILES: list_files(aside, done)}))
                content[_DIGEST] = text_digest(content)
                (aside / _MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                sync_folder(aside)
            if self.holds(key) and self.check(key) is not None:
                self.set_aside(key)
            with writing(self.artifacts):
                _rename_unless_there(aside, done)
                sync(self.artifacts)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return done

    def keep_spec(self, key: str, spec: str) -> None:
        """Keep the JSON of a stage or measurement that failed, so that it can be run again alone.

        Raises:
            StorageError: the disk refuses.
        """
        folder = self.results / "failed"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            replace(self.kept_spec(key), spec)

    def kept_spec(self, key: str) -> Path:
        """The file of `keep_spec`."""
        return self.results / "failed" / f"{key}.json"

    def sweep_out(self) -> None:
        """Remove what killed workers left half-written. Call only while no worker runs."""
        for stale in self.artifacts.glob(".*.*"):
            shutil.rmtree(stale, ignore_errors=True)

    def _incomplete(self, key: str) -> str | None:
        try:
            found = self._read(key)
        except FileNotFoundError:
            return f"{_MANIFEST} is not there"
        except (OSError, ValueError) as error:
            return f"{_MANIFEST}: {error}"
        return size_problem(self.artifacts / key, found.get(_FILES, {}))

    def _read(self, key: str) -> dict[str, Any]:
        found = json.loads((self.artifacts / key / _MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
        content = {k: v for k, v in found.items() if k != _DIGEST}
        if _DIGEST in found and found[_DIGEST] != text_digest(content):
            raise ValueError("its content is not what was written (sha256)")
        return found


def _damaged(folder: Path, problem: str) -> StorageError:
    return StorageError(
        f"{folder} is damaged: {problem}. Run the same command again: it sets the artifact aside and computes it anew"
    )


def _rename_unless_there(aside: Path, done: Path) -> None:
    try:
        aside.rename(done)
    except OSError as error:
        # Another process has made the same artifact meanwhile.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
