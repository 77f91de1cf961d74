"""Finding what is wrong with a dataset's files, so that an error names the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path

from harness._printable import printable
from harness._secrets import redacted

__all__ = ["broken_file", "data_reason", "outside_problem"]

_TEXT = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt"}
_LINES = {".jsonl", ".ndjson"}
_LARGEST_JSON = 2**28
"""Bytes of one JSON file that are read whole to find out what is wrong with it."""


def outside_problem(folder: Path) -> str | None:
    """Why a dataset's folder would be read from elsewhere, or run code, or None.

    A card (README.md) names the files of a dataset; the `datasets` library follows it out of the folder and into the
    network.
    """
    import huggingface_hub

    if (folder / ".huggingface.yaml").exists():
        return f"{folder / '.huggingface.yaml'}: not supported; say in README.md which files make which split"
    if (folder / f"{folder.name}.py").exists():
        return f"{folder / folder.name}.py: datasets with code of their own are not supported; expected data files"
    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        configs = huggingface_hub.DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs")
    except Exception as error:  # noqa: BLE001  # the card is anybody's YAML, and its reader raises whatever it raises
        return f"{card}: its front matter is not valid YAML: {_line(error)}"
    for text in _texts(configs, set()):
        path = text.replace("\\", "/")
        if "://" in path or path.startswith(("/", "~")) or ".." in path.split("/"):
            return f"{card}: names data outside of its folder ({printable(text)[:80]}); expected files below {folder}"
    return None


def _texts(value: object, seen: set[int]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item, seen)


def broken_file(folder: Path) -> str | None:
    """The first data file below a folder that cannot be read, with the line and the reason; None where all can be."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.suffix == ".parquet" and (problem := _parquet(path)):
            return problem
        if path.suffix in _TEXT and (problem := _text_file(path)):
            return problem
    return None


def _parquet(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(max(0, path.stat().st_size - 4))
        tail = file.read(4)
    if head == tail == b"PAR1":
        return None
    return f"{path}: {'cut off' if head == b'PAR1' else 'not a Parquet file'}; copy it again from where it came from"


def _text_file(path: Path) -> str | None:
    if not path.stat().st_size:
        return f"{path}: the file is empty; expected a row a line" if path.suffix in _LINES else f"{path}: is empty"
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"{path}:{number}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
            if path.suffix in _LINES and line.strip() and (problem := _json_line(line)):
                return f"{path}:{number}: {problem}"
    if path.suffix == ".json" and path.stat().st_size <= _LARGEST_JSON:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            return f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg})"
        except RecursionError:
            return f"{path}: nested too deeply"
    return None


def _json_line(line: str) -> str | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno}); expected one object a line"
    except RecursionError:
        return "nested too deeply; expected one object a line"
    return None if isinstance(row, dict) else f"expected a JSON object, got {json.dumps(row)[:40]}"


def data_reason(error: BaseException) -> str:
    """What a reader of data files said, in a line: the innermost error, as outer ones say only that there is one."""
    current = error
    while (inner := current.__cause__) is not None:
        current = inner
    return _line(current if str(current).strip() else error)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return printable(redacted(text))[:300] or type(error).__name__
