"""Votes kept by what was asked, so that none is paid twice: not after a kill, in another sweep or by another worker."""

import dataclasses
import fcntl
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from harness._digests import text_digest
from harness._disk import replace, sync, writing
from harness._measures import Endpoint
from harness.errors import StorageError
from harness.keys import content_key
from harness.measure.judge._endpoint import EndpointVoter
from harness.measure.judge._templates import TEMPLATE_VERSION
from harness.measure.judge._types import Keep, Progress, Question, Verdict, Voter

__all__ = ["CachedVoter", "VoteCache", "endpoint_voter", "vote_key"]

log = logging.getLogger(__name__)

_LEDGER = "costs.txt"
_PLAIN = re.compile(r"[0-9a-f]{32}")
_PAID = re.compile(rb"[0-9a-f]{32} [0-9]+(\.[0-9]+)?(e[+-]?[0-9]{1,2})?")
_DIGEST = "sha256"
_VERDICT = TypeAdapter(Verdict)


def vote_key(judge: str, question: Question) -> str:
    """What decides a vote: the judge's key, the templates' version, and all that it is asked."""
    return content_key(
        "vote", judge=judge, version=TEMPLATE_VERSION, template=question.template, texts=dict(question.texts)
    )


class VoteCache:
    """Votes below a folder, each a file of its own, and what each judge has cost.

    `<judge's key>/<first two characters>/<vote's key>.json` holds a verdict and its sha256; it is written aside, synced
    and renamed, so half a vote is never visible. `<judge's key>/costs.txt` has one line for every vote that was paid.
    That line is written first: a process killed between the two has paid for a vote that is lost, and the sum says so.
    Several processes may write at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sums: dict[str, tuple[int, float]] = {}

    def get(self, judge: str, vote: str) -> Verdict | None:
        """The verdict kept under this key, or None. A damaged file is set aside, with a note in the log.

        Raises:
            StorageError: the disk refuses.
        """
        file = self._file(judge, vote)
        try:
            return _read(file, vote)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {file}: {error.strerror}; make it readable, or remove it") from error
        except ValueError as error:
            aside = file.with_name(f".damaged-{file.name}")
            with writing(file.parent):
                # Another process may have set it aside meanwhile.
                if file.exists():
                    file.replace(aside)
            reason = str(error).splitlines()[0]
            log.warning("%s is damaged (%s): set aside as %s, its question is asked again", file, reason, aside.name)
            return None

    def put(self, judge: str, vote: str, verdict: Verdict) -> None:
        """Keep a verdict, and what it cost.

        Raises:
            StorageError: the disk refuses.
        """
        file = self._file(judge, vote)
        content: dict[str, object] = {"key": vote, "vote": dataclasses.asdict(verdict)}
        content[_DIGEST] = text_digest(content)
        with writing(self.folder):
            if not file.parent.is_dir():
                file.parent.mkdir(parents=True, exist_ok=True)
                sync(file.parent.parent)
                sync(self.folder)
            if verdict.cost:
                self._note(judge, vote, verdict.cost)
            replace(file, json.dumps(content, allow_nan=False))
            sync(file.parent)

    def cost(self, judge: str) -> float:
        """What all votes of a judge have cost, whoever paid them. Only what was added since the last call is read."""
        ledger = self._folder(judge) / _LEDGER
        if not ledger.exists():
            return 0.0
        offset, total = self._sums.get(judge, (0, 0.0))
        with ledger.open("rb") as file:
            if offset > file.seek(0, os.SEEK_END):
                offset, total = 0, 0.0
            file.seek(offset)
            # A line that is being written has no end yet: it counts the next time.
            whole, newline, _ = file.read().rpartition(b"\n")
        for line in whole.splitlines():
            if _PAID.fullmatch(line):
                total += float(line.split()[1])
            elif line:
                log.warning("%s: a line is damaged, what it cost is not counted", ledger)
        self._sums[judge] = (offset + len(whole) + len(newline), total)
        return total

    def _note(self, judge: str, vote: str, cost: float) -> None:
        with (self._folder(judge) / _LEDGER).open("a+b") as file:
            # O_APPEND alone does not keep two machines on NFS apart.
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            # What a loss of power has left of a line must not take the next one with it.
            torn = end > 0 and file.read(1) != b"\n"
            file.write(b"\n" * torn + f"{vote} {cost!r}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def _folder(self, judge: str) -> Path:
        # A local judge's key may be the name of a model, which no path is made of.
        return self.folder / (judge if _PLAIN.fullmatch(judge) else content_key("votes", judge=judge))

    def _file(self, judge: str, vote: str) -> Path:
        return self._folder(judge) / vote[:2] / f"{vote}.json"


def _read(file: Path, vote: str) -> Verdict:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("key") != vote:
        raise ValueError("it holds another vote, or none")
    if content.pop(_DIGEST, None) != text_digest(content):
        raise ValueError("its content is not what was written (sha256)")
    return _VERDICT.validate_python(content.get("vote"))


class CachedVoter:
    """A judge that is asked only what it has not answered before.

    Equal questions of one call are one vote. Every reply is kept, also one that holds no verdict: it was paid, and
    asking until the words can be read would choose among them. What failed is not kept. Two processes that ask the
    same at the same moment both pay.
    """

    def __init__(self, voter: Voter, cache: VoteCache) -> None:
        self._voter, self._cache = voter, cache

    @property
    def name(self) -> str:
        """The judge's."""
        return self._voter.name

    @property
    def key(self) -> str:
        """The judge's."""
        return self._voter.key

    def vote(
        self, questions: Sequence[Question], keep: Keep | None = None, progress: Progress | None = None
    ) -> list[Verdict]:
        """Its verdicts, in order; see `Voter`. `keep` is told of those found as well.

        Raises:
            StorageError: the disk refuses; what was kept before stays.
        """
        keys = [vote_key(self.key, question) for question in questions]
        places: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        known: dict[str, Verdict] = {}
        done = 0

        def tell(key: str, verdict: Verdict) -> None:
            nonlocal done
            known[key] = verdict
            done += len(places[key])
            if keep is not None:
                for place in places[key]:
                    keep(place, verdict)
            if progress is not None:
                progress(done, len(questions))

        for key in places:
            if (found := self._cache.get(self.key, key)) is not None:
                tell(key, found)
        missing = [key for key in places if key not in known]

        def answered(asked: int, verdict: Verdict) -> None:
            self._cache.put(self.key, missing[asked], verdict)
            tell(missing[asked], verdict)

        if missing:
            self._voter.vote([questions[places[key][0]] for key in missing], answered)
        return [known[key] for key in keys]


def endpoint_voter(endpoint: Endpoint, folder: Path) -> CachedVoter:
    """A judge behind an endpoint whose votes, and what they cost, are kept in a folder (`Folders.votes`)."""
    votes = VoteCache(folder)
    return CachedVoter(EndpointVoter(endpoint, endpoint.key, lambda: votes.cost(endpoint.key)), votes)
