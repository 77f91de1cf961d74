"""Publishing into a folder, and the proof of what lies in one."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.publish._board import Board
    from harness.publish._gather import Part
    from harness.publish._reading import Export
    from harness.publish._spool import Blob
    from harness.publish._verify import Discrepancy
    from harness.store import Store

__all__ = ["Published", "publish", "verify"]


@dataclass(frozen=True)
class Published:
    """What was published.

    `place` is where, as it may be shown; `conflicts` how many ids have two versions of their scores; `kept` how many
    entries of an earlier board stayed beside the new ones; `changed` whether anything there is not as it was.
    """

    place: str
    entries: int
    figures: int
    conflicts: int
    kept: int = 0
    changed: bool = True


def publish(
    store: "Store",
    sweeps: Sequence[str],
    to: Path,
    *,
    merge: Sequence[Path] = (),
    onto: Path | None = None,
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
        onto: an earlier export of this board: its entries of other sweeps stay, those of the same sweeps are replaced.
            Where the board is the same as that one but for the time, it gets the time of that one too, and with it the
            same bytes.
        texts: publish what was asked and answered beside the scores.
        now: the time that stands in the pages; the present one if not given.

    Raises:
        UserError: no such sweep, nothing to publish, something else lies at `to`, an export to merge that is not what
            its samples say, or something that must not be published.
    """
    from harness.publish._board import board_of
    from harness.publish._checks import refuse
    from harness.publish._files import MANIFEST, check_place, put
    from harness.publish._gather import gather
    from harness.publish._scrub import Scrubber

    to = Path(to)
    check_place(to)
    scrub = Scrubber.here(store.results, to)
    store.ingest()
    with store.reading():
        own = [part for sweep in _sweeps(store, sweeps) for part in gather(store, sweep, scrub, texts=texts)]
    parts = own + [part for folder in merge for part in _merged(Path(folder))]
    earlier: Export | None = None
    kept: set[str] = set()
    if onto is not None:
        earlier, stay = _staying(onto, {card.sweep for card, _ in own})
        kept = {card.digest for card, _ in stay} - {card.digest for card, _ in parts}
        # In the order of the earlier board, what is new last: an equal board has equal bytes, whoever published it.
        places = {card.digest: place for place, card in enumerate(earlier.cards.values())}
        parts = sorted([*parts, *stay], key=lambda part: places.get(part[0].digest, len(places)))
    board = board_of(parts)
    content = _content(board, f"{now or datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC")
    if onto is not None and earlier is not None and _may_be_equal(board, earlier):
        same = _content(board, earlier.manifest.made)
        if same[MANIFEST] == (onto / MANIFEST).read_bytes():
            content = same
    refuse(content, board, own, scrub)
    put(to, content)
    return Published(str(to), len(board.cards), board.rows.height, len(board.conflicts), len(kept))


def verify(export: Path) -> "list[Discrepancy]":
    """Compute every published figure again from its samples, and say what differs; nothing for a sound export.

    What hosts keep beside a board (`.git`, `CNAME`, the Hub's `README.md`, …) is no part of it.

    Raises:
        UserError: it cannot be read as an export at all.
    """
    from harness.publish._verify import read_and_verify

    return read_and_verify(Path(export))[1]


def _content(board: "Board", made: str) -> "dict[str, Blob]":
    from harness import __version__
    from harness.publish._files import MANIFEST, data_files, manifest_of
    from harness.publish._pages import pages

    content: dict[str, Blob] = {name: text.encode() for name, text in pages(board, made).items()}
    content |= data_files(board)
    content[MANIFEST] = manifest_of(board, made, __version__, content)
    return content


def _merged(folder: Path) -> "list[Part]":
    from harness.publish._verify import read_and_verify

    export, found = read_and_verify(folder)
    if found:
        raise UserError(
            f"{folder} is not what its samples say, and is not merged: {_first(found)}; `harness verify {folder}` "
            "says all"
        )
    return export.parts()


def _staying(folder: Path, own: set[str]) -> "tuple[Export, list[Part]]":
    from harness.publish._verify import read_and_verify

    export, found = read_and_verify(folder)
    parts = [part for part in export.parts() if part[0].sweep not in own]
    # Where nothing of it stays, a damaged board is simply replaced.
    if parts and found:
        raise UserError(
            f"the board that is there is not what its samples say ({_first(found)}), so its entries of other sweeps "
            "cannot stay: put a sound board in its place, or remove it to begin anew"
        )
    return export, parts


def _first(found: "Sequence[Discrepancy]") -> str:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0]}{more}"


def _may_be_equal(board: "Board", earlier: "Export") -> bool:
    from harness.publish._files import code_digest

    ours, theirs = ({key: card.digest for key, card in cards.items()} for cards in (board.cards, earlier.cards))
    return ours == theirs and earlier.manifest.code == code_digest()


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
