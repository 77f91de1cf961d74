"""A leaderboard as a static site, and the proof that it says what its samples say. Reads the store only."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.publish._verify import Discrepancy
    from harness.store import Store

__all__ = ["Published", "publish", "verify"]


@dataclass(frozen=True)
class Published:
    """What was published: where, how many entries and figures, and how many ids have two versions of their scores."""

    folder: Path
    entries: int
    figures: int
    conflicts: int


def publish(
    store: "Store",
    sweeps: Sequence[str],
    to: Path,
    *,
    merge: Sequence[Path] = (),
    texts: bool = True,
    now: datetime.datetime | None = None,
) -> Published:
    """Write the leaderboard of these sweeps as a folder that any static host can serve.

    It is written aside and put in place as a whole. Paths, names of users and hosts, and secrets are taken out of
    everything; what is left of them after all keeps the export from being published.

    Args:
        store: its shards are ingested first.
        sweeps: their ids, or suites' names (the latest sweep of each); none: every suite's latest.
        to: the folder: an earlier export, which is replaced, an empty one, or none yet.
        merge: exports of others, whose entries join the board. Equal ones are one; of an entry with other scores both
            stay, and the board says so.
        texts: publish what was asked and answered beside the scores.
        now: the time that stands in the pages; the present one if not given.

    Raises:
        UserError: no such sweep, nothing to publish, something else lies at `to`, an export to merge that is not what
            its samples say, or something that must not be published.
    """
    from harness import __version__
    from harness.publish._board import board_of
    from harness.publish._checks import refuse
    from harness.publish._files import MANIFEST, check_place, data_files, manifest_of, put
    from harness.publish._gather import gather
    from harness.publish._pages import pages
    from harness.publish._scrub import Scrubber
    from harness.publish._verify import read_and_verify

    to = Path(to)
    check_place(to)
    scrub = Scrubber.here(store.results, to)
    store.ingest()
    with store.reading():
        parts = [part for sweep in _sweeps(store, sweeps) for part in gather(store, sweep, scrub, texts=texts)]
    own = list(parts)
    for folder in merge:
        export, found = read_and_verify(Path(folder))
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise UserError(
                f"{folder} is not what its samples say, and is not merged: {found[0]}{more}; `harness verify {folder}` "
                "says all"
            )
        parts += export.parts()
    board = board_of(parts)
    made = f"{now or datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    content = {name: text.encode() for name, text in pages(board, made).items()} | data_files(board)
    content[MANIFEST] = manifest_of(board, made, __version__, content)
    refuse(content, board, own, scrub)
    put(to, content)
    return Published(to, len(board.cards), board.rows.height, len(board.conflicts))


def verify(export: Path) -> "list[Discrepancy]":
    """Compute every published figure again from its samples, and say what differs; nothing for a sound export.

    Raises:
        UserError: it cannot be read as an export at all.
    """
    from harness.publish._verify import read_and_verify

    return read_and_verify(Path(export))[1]


def _sweeps(store: "Store", names: Sequence[str]) -> list[str]:
    # By the order of writing, the latest last: it stands for its suite.
    rows = store.query(
        "SELECT sweep, arg_max(suite, (batch, batch_row)) FROM raw.sweep_events GROUP BY sweep "
        "ORDER BY max((batch, batch_row))"
    ).rows()
    latest: dict[str, str] = {str(suite): str(sweep) for sweep, suite in rows}
    known = {str(sweep) for sweep, _ in rows}
    if not names:
        return list(latest.values())
    if unknown := [n for n in names if n not in known and n not in latest]:
        raise UserError(f"no sweep or suite {unknown[0]!r}; there are: {', '.join(sorted(known)) or 'none yet'}")
    return list(dict.fromkeys(n if n in known else latest[n] for n in names))
