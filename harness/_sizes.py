"""How much of a disk a folder takes."""

from pathlib import Path

__all__ = ["bytes_below"]


def bytes_below(folder: Path) -> int:
    """Bytes of the files in a folder, at any depth, or of a file itself; what goes away meanwhile counts nothing."""
    total = 0
    for path in (folder, *folder.rglob("*")):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
