"""Whatever is in the file, `load_suite` gives a suite, or an error of the user with a place on every line.

`HARNESS_FUZZ=50` runs fifty times as many examples.
"""

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness._printable import printable
from harness.errors import UserError
from harness.suite import load_suite
from harness.yamlmarks import read_yaml

SUITES = sorted((Path(__file__).parents[2] / "suites").glob("*.yaml"))
TEXTS = [path.read_text(encoding="utf-8") for path in SUITES]
DATA: list[Any] = [read_yaml(text, "s").data for text in TEXTS]

many = settings(
    max_examples=100 * int(os.environ.get("HARNESS_FUZZ", "1")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

LONGEST_S = 10.0
"""Of the processor, for one file: the largest that is read takes 1 to 2."""


def _check(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = time.process_time()
    try:
        suite = load_suite(path)
    except UserError as error:
        lines = str(error).split("\n")
        assert lines
        assert all(line.startswith((f"{path}:", "… and ")) for line in lines), lines
        assert all(printable(line) == line for line in lines), lines
    else:
        assert suite.sweep_id().startswith(suite.name)
        assert suite.recipe_order()
        assert "/" not in suite.sweep_id()
    assert time.process_time() - before < LONGEST_S


def test_the_suites_that_are_changed_are_suites(tmp_path: Path) -> None:
    assert len(SUITES) >= 4
    for data in DATA:
        (tmp_path / "s.yaml").write_text(json.dumps(data))
        load_suite(tmp_path / "s.yaml")


@many
@given(st.binary(max_size=300))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    _check(tmp_path / "s.yaml", content)


MARKS = (
    "&a |*a|!!python/object:x |!x |<<: |? |- |: |{|}|[|]|>\n|'|#|---\n|...\n|%TAG ! x\n|\t|\n|\r|\x00|\ufeff"
    "|\u2028|\u202e|\x1b[2J|😀"
)
SCALARS = "null|~|.nan|-.inf|1e400|-0|1_000|true|../..|base|search|0x" + "f" * 40 + "|" + "9" * 400
WORDS = st.sampled_from([*MARKS.split("|"), *SCALARS.split("|"), "|\n", '"'])


@st.composite
def _spliced(draw: st.DrawFn) -> bytes:
    """A shipped suite with pieces cut out, doubled, moved in, and strange words put anywhere."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 5))):
        at, to = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        to = min(to, at + 200)
        piece = draw(st.one_of(st.just(""), WORDS, st.text(max_size=8), st.just(text[at:to] * 2)))
        text = text[:at] + piece + text[to:]
    return text.encode("utf-8", errors="surrogatepass")


@many
@given(_spliced())
def test_shipped_suites_with_their_text_changed(tmp_path: Path, content: bytes) -> None:
    _check(tmp_path / "s.yaml", content)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["base", "self", "search", "../x", "org/m", "sft", "cpu-fp32", "gold_reward", "x" * 99]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["min", "max", "log", "values", "use", "sft", "dpo", "limit", "x"]), inner)
        | st.text(max_size=4).flatmap(lambda key: inner.map(lambda value: {key: value}))
    ),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(below for key, child in children for below in _places(child, (*path, key)))]


@st.composite
def _changed(draw: st.DrawFn) -> bytes:
    """A shipped suite with values replaced, and keys taken away, renamed, doubled and swapped."""
    data = copy.deepcopy(draw(st.sampled_from(DATA)))
    doubled = False
    for _ in range(draw(st.integers(1, 4))):
        places = [p for p in _places(data) if p]
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        parent = data
        for key in way:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "remove", "rename", "copy", "nest", "double"]))
        if action == "replace":
            parent[last] = draw(VALUES)
        elif action == "remove":
            del parent[last]
        elif action == "nest":
            for _ in range(draw(st.sampled_from([1, 3, 39, 100]))):
                parent[last] = [parent[last]]
        elif isinstance(parent, list):
            parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(parent[last]))
        elif action == "rename":
            others = [*parent, "x"]
            parent[draw(st.text(max_size=6) | st.sampled_from(others))] = parent.pop(last)
        elif action == "copy":
            parent[draw(st.text(max_size=6))] = copy.deepcopy(parent[last])
        else:
            doubled = True
    text = json.dumps(data, ensure_ascii=draw(st.booleans()))
    if doubled and isinstance(data, dict) and data:
        key = draw(st.sampled_from(list(data)))
        text = f"{text.rstrip('}')}, {json.dumps(key)}: {json.dumps(data[key])}}}"
    return text.encode("utf-8", errors="surrogatepass")


@many
@given(_changed())
def test_shipped_suites_with_their_values_changed(tmp_path: Path, content: bytes) -> None:
    _check(tmp_path / "s.yaml", content)


KNOTS = st.sampled_from(["&a", "*a", "&b", "*b", "[", "]", "{", "}", ",", "a: ", "- ", "x", "\n", "  "])


@many
@given(st.lists(KNOTS, max_size=60))
def test_anchors_and_brackets(tmp_path: Path, words: list[str]) -> None:
    _check(tmp_path / "s.yaml", " ".join(words).encode())


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        "{a: " * 30_000,
        "- " * 60_000,
        "? " * 60_000,
        "a: &a\n" + "".join(f" - &x{i} [*x{i - 1}, *x{i - 1}]\n" if i else " - &x0 x\n" for i in range(3000)),
        "a: " + "&b " * 40_000,
        "a: !" + "x" * 120_000,
        '"' + "\\x41" * 30_000 + '": 1',
        "name: |\n" + " x\n" * 40_000,
        "k: v\n" * 30_000,
        "".join(f"k{i}: {{a: {i}}}\n" for i in range(7000)),
        "# " + "x" * 130_000,
        "a: " + "'" * 100_001,
        "%YAML 1.2\n" * 1000,
    ],
    ids=range(14),
)
def test_what_is_large_or_deep_is_read_or_refused_in_bounded_time(tmp_path: Path, text: str) -> None:
    _check(tmp_path / "s.yaml", text.encode())
