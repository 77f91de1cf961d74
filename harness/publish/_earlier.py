"""The board that a branch or a repository holds already: which files there are its own, and which are others'."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from harness.errors import UserError
from harness.publish._files import FORMAT, MANIFEST

__all__ = ["Make", "check_room", "is_board", "owned"]

Make = Callable[[Path | None], Path]
"""Makes the site that is to be sent, given the folder of the board that is there already, or None; called again where
that board changes meanwhile."""


def is_board(manifest: bytes) -> bool:
    """Whether a `manifest.json` is a board's, of whatever version; many a site has a file of that name."""
    try:
        found = json.loads(manifest)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def owned(folder: Path, place: str) -> frozenset[str]:
    """The paths of a board's files, by its manifest in this folder.

    Raises:
        UserError: a manifest that this harness cannot read.
    """
    from harness.publish._reading import read_manifest

    try:
        return frozenset({MANIFEST, *read_manifest(folder).files})
    except UserError as error:
        raise UserError(
            f"the board on {place} cannot be read, so nothing of it can stay "
            f"({str(error).replace(str(folder), place)}). Publish elsewhere, or remove it to begin anew"
        ) from error


def check_room(site: Iterable[str], others: Iterable[str], place: str) -> None:
    """Refuse to write over what is not a board's.

    Args:
        site: the paths of the new board.
        others: the paths there that are of no earlier board.
        place: its name, for the message.

    Raises:
        UserError: one of the others is in the way, as a file of the same name or a file where a folder must be.
    """
    there = set(others)
    folders = {str(parent) for path in there for parent in PurePosixPath(path).parents}
    for path in sorted(site):
        above = {str(parent) for parent in PurePosixPath(path).parents}
        if path in there or path in folders or not there.isdisjoint(above):
            raise UserError(
                f"{place} holds {path!r} (or a file or folder in its way), which is not of an earlier board: give a "
                "place of the board's own, or move that away first"
            )
