"""A file imports from its own floor or below, and methods know nothing of the engine (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = {
    "cli": 6,
    "show": 6,
    "_export_commands": 6,
    "_comparing_commands": 6,
    "_command_basics": 6,
    "_human_commands": 6,
    "alone": 5,
    "gc": 5,
    "retry": 5,
    "running": 5,
    "sweep": 5,
    "progress": 5,
    "trackers": 5,
    "human": 5,
    "report": 5,
    "doctor": 5,
    "plan": 4,
    "publish": 5,
    "checks": 4,
    "history": 4,
    "_replay": 4,
    "outlook": 4,
    "proxy": 4,
    "objectives": 4,
    "resolve": 4,
    "measurements": 4,
    "spending": 4,
    "search": 4,
    "execute": 4,
    "gates": 4,
    "foreign": 3,
    "measure": 3,
    "methods": 3,
    "runtimes": 2,
    "store": 2,
    "stats": 2,
}
"""Room → floor; every other module of `harness` is on floor 1."""

FILES = sorted([*ROOT.glob("harness/**/*.py"), *ROOT.glob("methods/*.py")])


def _floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS["methods"] if parts[0] == "methods" else FLOORS.get(parts[1] if len(parts) > 1 else "", 1)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if own.startswith("harness.bundled"):
        pytest.skip("scripts that make the bundled data use whatever they need")
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    inside = {m for m in found if m.split(".")[0] in ("harness", "methods")}
    assert not [m for m in inside if _floor(m) > _floor(own)]
    if own.startswith("methods"):
        # An export is opened in its runtime before it is left to others.
        allowed = {m for m in inside if m.startswith("harness.runtimes")}
        assert not [m for m in inside - allowed if m.split(".")[0] == "harness" and _floor(m) > 1]
