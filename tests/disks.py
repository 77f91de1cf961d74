"""Real disks that are small or read-only, for tests of what happens when one refuses."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["leave", "remount", "small_disk"]


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of so many KiB, mounted on the folder for the length of the block; skips where that may not be."""
    folder.mkdir(exist_ok=True)
    if (mount := shutil.which("mount")) is None or (unmount := shutil.which("umount")) is None:
        pytest.skip("there is no mount command here")
    command = [mount, "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([unmount, "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a mounted file system: `ro`, `rw`, `size=…k`."""
    subprocess.run([shutil.which("mount") or "mount", "-o", f"remount,{options}", str(folder)], check=True)


def leave(folder: Path, kib: int) -> Path:
    """Fill the file system and leave so many KiB free; returns the file that does, to be removed."""
    ballast = folder / ".ballast"
    ballast.unlink(missing_ok=True)
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096) == 4096:
            pass
    size = ballast.stat().st_size
    with ballast.open("r+b") as file:
        file.truncate(max(0, size - kib * 1024))
    return ballast
