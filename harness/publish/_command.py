"""The exact command that repeats a sweep: what its suite says beyond its file is told to `--set`."""

import json
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.errors import UserError
from harness.report._queries import Facts, mapping
from harness.suite import load_suite

__all__ = ["command_of"]

_UNKNOWN = (
    "The suite printed here cannot be read by itself any more (a newer version of the harness, or files it names that "
    "are not here): whether the sweep was run with --set or --data beside it is not known."
)


def command_of(facts: Facts) -> tuple[str, list[str]]:
    """The command line for the suite saved as `<suite>.yaml`, and what to know before running it."""
    changes, notes = _changes(facts)
    parts = ["harness", "sweep", f"{facts.suite}.yaml", *(p for c in changes for p in ("--set", c))]
    if any(mapping(text).get("remote code allowed") is True for text in facts.environments["json"]):
        parts.append("--trust-remote-code")
    if facts.left_out():
        parts.append("--skip-unavailable")
    return shlex.join(parts), notes


def _changes(facts: Facts) -> tuple[list[str], list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.yaml"
        path.write_text(facts.yaml, encoding="utf-8")
        try:
            alone = load_suite(path).model_dump(mode="json")
        except UserError:
            return [], [_UNKNOWN]
    return list(_differing(alone, facts.settings, ())), []


def _differing(alone: object, run: object, at: tuple[str, ...]) -> Iterator[str]:
    if alone == run:
        return
    if isinstance(alone, Mapping) and isinstance(run, Mapping) and run.keys() >= alone.keys():
        for name in run:
            yield from _differing(alone.get(name), run[name], (*at, str(name)))
    elif at:
        yield f"{'.'.join(at)}={json.dumps(run)}"
