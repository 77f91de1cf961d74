"""Nothing of a machine is left in a text, and nothing else is taken out of it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.publish._scrub import Scrubber

SCRUB = Scrubber(("/srv/exp one/run", "/work/lab"), ("alice", "root"), ("node17.cluster", "node17"))
TOKEN = "hf_" + "a1B2" * 6


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/bob/models/tiny", "tiny"),
        ("model: /data/x/tiny.gguf # mine", "model: tiny.gguf # mine"),
        ('File "/usr/lib/python3/torch/nn.py", line 3', 'File "nn.py", line 3'),
        ("see /home/bob", "see ~"),
        ("see /Users/bob/", "see ~"),
        ("/root is full", "root is full"),
        ("file:///home/bob/a%20b.json", "a b.json"),
        (r"C:\Users\bob\x.txt and D:/data/y", "x.txt and y"),
        (r"in C:\\Users\\bob", "in ~"),
        (r"from \\server\share\z.bin", "from z.bin"),
        ("-L/work/lab/lib", "-Llib"),
        ("/srv/exp one/run/stage.json", "stage.json"),
        ("%2Fwork%2Flab", "lab"),
        (r"{\"at\": \"\/work\/lab\/x\"}", r"{\"at\": \"x\"}"),
        ("ssh alice@node17.cluster", "ssh [user removed]@[host removed]"),
        ("NODE17 is malicealice", "[host removed] is malicealice"),
        (f"token={TOKEN}", "token=[secret removed]"),
        (f"I say {TOKEN}.", "I say [hub token removed]."),
    ],
)
def test_what_names_a_machine_goes(text: str, clean: str) -> None:
    assert SCRUB.clean(text) == clean
    assert SCRUB.problem(text) is not None
    assert SCRUB.problem(clean) is None


@pytest.mark.parametrize(
    "text",
    [
        "and/or, 1/2, he/she; f(x)/g(x)/h(x)",
        "https://huggingface.co/org/model/tree/main?x=/a",
        "methods/dpo.py and ./here/there, ../up/x",
        "<b>bold</b></script>",
        "/think step by step /no_think",
        "the square root of 2; root",
        "at 12:30, a ratio 3:/4",
        "org/model",
    ],
)
def test_all_else_stays(text: str) -> None:
    assert SCRUB.clean(text) == text
    assert SCRUB.problem(text) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8080/v1", "http://private.example/v1"),
        ("http://[::1]:8080/v1", "http://private.example/v1"),
        ("http://gpu-box/v1", "http://private.example/v1"),
        ("https://judge.team.internal/v1", "https://private.example/v1"),
        ("https://judge.team.org:8443/v1", "https://private.example/v1"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
    ],
)
def test_a_suite_names_no_server_of_ones_own(url: str, shown: str) -> None:
    scrub = Scrubber()
    text = "judge: {{panel: [base, {{endpoint: {0}, model: m}}]}}\nother:\n  - endpoint: '{0}'\n"
    assert scrub.yaml(text.format(url)) == text.format(shown)
    assert scrub.servers(f"--set measure.judge.model.endpoint={url}") == f"--set measure.judge.model.endpoint={shown}"
    assert scrub.yaml(scrub.yaml(text.format(url))) == text.format(shown)


def test_a_name_with_spaces_is_one_path() -> None:
    assert SCRUB.name("/home/bob smith/my models/tiny one") == "tiny one"
    assert SCRUB.yaml("models:\n  - /home/bob smith/tiny one # local\n  - org/hub\n") == (
        "models:\n  - tiny one # local\n  - org/hub\n"
    )


def test_data_lose_keys_that_name_somebody() -> None:
    found = SCRUB.value({"machine": {"cpu": "x", "hostname": "abc", "User": "q"}, "at": ["/a/b/c", 1, None, True]})
    assert found == {"machine": {"cpu": "x"}, "at": ["c", 1, None, True]}


def test_knows_who_and_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USER", "marguerite")
    monkeypatch.setenv("HOME", str(tmp_path / "marguerite"))
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-box.lab.example")
    here = Scrubber.here(tmp_path / "results")
    said = here.clean(f"marguerite on gpu-box, {tmp_path}/results/x and x{tmp_path}/results/y")
    assert said == "[user removed] on [host removed], x and xy"


_PIECES = st.lists(
    st.sampled_from(
        ["/home/bob", "/a", "/b/c", " ", ":", "//", "C:\\", "\\", "x", "file:/", "alice", "token=", "=", '"']
    )
    | st.text(max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(_PIECES.map("".join))
def test_a_clean_text_passes_and_stays(text: str) -> None:
    clean = SCRUB.clean(text)
    assert SCRUB.clean(clean) == clean
    assert SCRUB.problem(clean) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(_PIECES.map("".join), max_size=8))
def test_many_at_once_are_as_one_by_one(texts: list[str]) -> None:
    assert SCRUB.clean_all(texts) == [SCRUB.clean(t) for t in texts]
    assert (SCRUB.first_problem(texts) is None) == all(SCRUB.problem(t) is None for t in texts)
