"""Reading YAML 1.2 strictly: what plain scalars mean, where values stand, and what is refused."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.yamlmarks import Document, Place, problems_error, read_text, read_yaml


def _messages(document: Document) -> str:
    return str(problems_error(document, document.problems))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("2E5", 2e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("+3", 3),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("nan", "nan"),
    ],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    document = read_yaml(f"a: {text}", "f")
    assert document.problems == []
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


def test_every_value_and_key_has_its_place() -> None:
    document = read_yaml("a:\n  b: [1, {c: x}]\n", "f.yaml")
    assert document.place(("a", "b")) == Place("f.yaml", 2, 6)
    assert document.place(("a", "b"), on_key=True) == Place("f.yaml", 2, 3)
    assert document.place(("a", "b", 1, "c")) == Place("f.yaml", 2, 14)
    assert str(document.place(("a", "b", 1, "c"), on_key=True)) == "f.yaml:2:11"
    assert document.place(("a", "absent", "deeper")) == Place("f.yaml", 2, 3)


def test_an_alias_is_a_copy_placed_where_it_is_used() -> None:
    document = read_yaml("a: &x {n: [1]}\nb: *x\nc: *x\n", "f")
    assert document.data == {"a": {"n": [1]}, "b": {"n": [1]}, "c": {"n": [1]}}
    assert document.data["b"] is not document.data["a"]
    assert document.data["b"]["n"] is not document.data["c"]["n"]
    assert document.place(("c", "n", 0)) == Place("f", 3, 4)


def test_a_redefined_anchor_leaves_earlier_values_alone() -> None:
    assert read_yaml("a: &x 1\nb: &y [*x]\nc: &x 2\nd: *y\n", "f").data == {"a": 1, "b": [1], "c": 2, "d": [1]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "f:3:1: duplicate key 'a', first given in line 1"),
        ("a: {b: 1, b: 2}", "f:1:11: a: duplicate key 'b', first given in line 1"),
        ("1: a", "f:1:1: keys are text, not 1; put it in quotes if text is meant"),
        ("true: a", "keys are text, not true"),
        ("? [x]\n: 1", "keys are text, not a list or mapping"),
        ("<<: {a: 1}", "merge keys (<<) are not part of YAML 1.2"),
        ("a: !!python/object/apply:os.system [x]", "f:1:4: a: tags are not supported"),
        ("a: !!str 1", "f:1:4: a: tags are not supported"),
        ("a\n---\nb", "f:2:1: a second document begins here"),
        ("%YAML 1.1\n---\na: 1", "expected YAML 1.2"),
        ("a: *b", "f:1:4: a: no anchor &b before this"),
        ("a: &a [*a]", "f:1:8: a.0: *a stands inside the value it names"),
        ("a:\n\tb: 1", "f:2:1: not valid YAML: while scanning for the next token"),
        ("a: [1, 2", "f:1:9: not valid YAML"),
        ("a: .inf", "f:1:4: a: the number .inf is out of range"),
        ("a: 1e999", "f:1:4: a: the number 1e999 is out of range"),
        ("a: " + "9" * 5000, "is out of range"),
        ('a: "\\ud800"', "f:1:4: a: the character U+D800 is not allowed"),
        ('a: "\\0"', "the character U+0000 is not allowed"),
        ("a: \0", "f:1:4: the character U+0000 is not allowed in YAML"),
        ('a: "\\U00110000"', "not valid YAML"),
        ("%YAML 1.99\n---\n", "not valid YAML"),
    ],
)
def test_refused(text: str, expected: str) -> None:
    assert expected in _messages(read_yaml(text, "f"))


def test_several_problems_come_at_once_in_the_order_of_the_file() -> None:
    document = read_yaml("b: {x: 1, x: 2}\n1: c\nb: !t 4\n", "f")
    lines = _messages(document).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["f:1:11", "f:2:1", "f:3:1"]


def test_many_problems_are_cut_off() -> None:
    lines = _messages(read_yaml("a: 1\n" * 500, "f")).splitlines()
    assert len(lines) == 41
    assert lines[-1] == "… and 459 more"


_BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{before}'] * 10)}]\n" for before, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (_BOMB, "unfolds to more than 10,000 values"),
        ("[" * 3000, "nested deeper than 40 levels"),
        ("- " * 50_000, "nested deeper than 40 levels"),
        ("a: [" + "1, " * 40_000 + "]", "unfolds to more than 10,000 values"),
        ("x " * 200_000, "larger than 128 KiB"),
    ],
    ids=["laughs", "flow", "block", "flat", "large"],
)
def test_bombs_are_refused_quickly(text: str, expected: str) -> None:
    before = time.process_time()
    document = read_yaml(text, "f")
    assert time.process_time() - before < 5
    assert document.data is None
    assert expected in _messages(document)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_text(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="this is a folder"):
        read_text(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_text(Path("a\0b"))
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.yaml:2:7: byte 0xe9 is not UTF-8"):
        read_text(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * 200_000)
    with pytest.raises(UserError, match="larger than 128 KiB"):
        read_text(tmp_path / "large.yaml")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(read_text(tmp_path / "bom.yaml"), "f").data == {"a": 1}


_PIECES = st.sampled_from(
    ["a", "b: ", "- ", "\n", "  ", "{", "}", "[", "]", ", ", "&x ", "*x", "!t ", '"', "'", "|", ">", "#", "? ", ": ",
     "%YAML 1.2\n", "---\n", "...\n", "1e-6", "\\u", "\t", "<<", "~", "é", "\x85", "\u2028", "0x", "@", "`"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(_PIECES, max_size=30).map("".join)))
def test_no_text_raises(text: str) -> None:
    document = read_yaml(text, "f")
    assert isinstance(document, Document)
    _messages(document)
    if not document.problems:
        assert () in document.values or document.data is None


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text("abcz.-", min_size=1, max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(_PLAIN)
def test_json_is_read_as_json(value: object) -> None:
    document = read_yaml(json.dumps(value), "f")
    assert document.problems == []
    assert document.data == value


def test_a_problem_is_one_line() -> None:
    document = read_yaml('"a\\nb": !t 1\n', "f")
    assert _messages(document) == "f:1:9: a b: tags are not supported; remove !t"
