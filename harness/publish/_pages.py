"""All pages of the site, made from the board alone: whoever has the data can make them again."""

from harness.publish._board import Board
from harness.publish._entry import entry_page
from harness.publish._index import index

__all__ = ["pages"]


def pages(board: Board, made: str) -> dict[str, str]:
    """Path in the export → text.

    Args:
        board: the entries.
        made: the time that stands in the pages.
    """
    entries = {f"entries/{key}.html": entry_page(board, key, made) for key in board.cards}
    # A lone surrogate has no UTF-8; what is published must be the same when it is read again.
    found = {"index.html": index(board, made), **entries}
    return {name: text.encode("utf-8", "replace").decode() for name, text in found.items()}
