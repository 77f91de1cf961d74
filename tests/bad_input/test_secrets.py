"""Tokens and passwords are taken out before anything is stored, logged or printed."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness._secrets import RedactedStream, first_secret, redacted
from harness.cli import main
from harness.errors import UserError
from harness.execute import StageSpec, run_spec
from harness.method import Context, Inputs, Method, Params, Trained
from harness.suite import load_suite
from tests.bad_input.conftest import suite_text

ROOT = Path(__file__).parents[2]
SECRET = "correct horse'battery\\staple"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment as people have it."""
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DB_PASSWORD"):
        monkeypatch.setenv(name, f"{SECRET} of {name}")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SOME_TOKEN", "short")
    monkeypatch.setenv("TOKEN_FILE", "/run/secrets/token")


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"])
@pytest.mark.parametrize("write", [str, repr, json.dumps, lambda v: f"<{v}>\n", lambda v: repr({"Authorization": v})])
def test_the_value_of_a_secret_variable_is_named_and_not_shown(name: str, write: Any) -> None:
    found = redacted(f"before {write(os.environ[name])} after")
    assert "horse" not in found
    assert f"[{name} removed]" in found
    assert found.startswith("before ")
    assert found.endswith(" after")


@pytest.mark.usefixtures("secrets")
def test_what_is_no_secret_stays() -> None:
    text = "false short /run/secrets/token pad_token=<|im_end|> the bearer of news budget?key=1 https://h.co/a:b@c"
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://hub.example/x?token=abcdefgh&y=1", "https://hub.example/x?token=[secret removed]&y=1"),
        ("https://me:geheim@hub.example/x", "https://[password removed]@hub.example/x"),
        ("postgres://u:p%40ss@db/x", "postgres://[password removed]@db/x"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer [secret removed]"),
        ("{'authorization': 'Bearer abcdefgh'}", "{'authorization': 'Bearer [secret removed]'}"),
        ("use hf_" + "aB3" * 8, "use [hub token removed]"),
        ("sk-proj-" + "aB3" * 10, "[API key removed]"),
        ("AKIA" + "ABCD1234" * 2, "[AWS key removed]"),
        ("ghp_" + "aB3" * 12, "[GitHub token removed]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----.", "[private key removed]."),
    ],
)
def test_secrets_show_by_their_shape(text: str, left: str) -> None:
    assert redacted(text) == left


def test_the_stored_token_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("a-token-of-another-form\n")
    assert redacted("got a-token-of-another-form!") == "got [hub token removed]!"


def test_a_stream_sees_secrets_that_are_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    below = io.StringIO()
    stream = RedactedStream(below)
    for piece in ("token: cor", "rect-h", "orse\nnext ", "line"):
        stream.write(piece)
    assert below.getvalue() == "token: [HF_TOKEN removed]\n"
    stream.flush()
    assert below.getvalue() == "token: [HF_TOKEN removed]\nnext line"


def test_a_suite_with_a_token_is_refused_without_repeating_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    path = tmp_path / "s.yaml"
    path.write_text(suite_text(question="is correct-horse good"))
    with pytest.raises(UserError, match=r"s\.yaml:6:14: the value of HF_TOKEN stands here") as caught:
        load_suite(path)
    assert "horse" not in str(caught.value)
    path.write_text(suite_text())
    with pytest.raises(UserError, match=r"--set …: the value of HF_TOKEN") as caught:
        load_suite(path, ["question=correct-horse"])
    assert "horse" not in str(caught.value)
    assert first_secret("nothing here") is None


class Telltale(Method[Params]):
    """One that puts all it knows into its error, and prints it."""

    name = "telltale"
    summary = "Tells."
    paper = "none"
    version = 1
    params = Params
    needs: ClassVar[Any] = frozenset()
    dataset_kind = None

    def run(self, inputs: Inputs, params: Params, context: Context) -> Trained:
        """Fail."""
        print("printed", os.environ["HF_TOKEN"], flush=True)
        print("shouted", os.environ["HF_TOKEN"], file=sys.stderr, flush=True)
        raise RuntimeError(f"login with {os.environ['HF_TOKEN']} failed \ud800 \x1b[2J")


def _spec() -> StageSpec:
    fields: dict[str, Any] = {
        "key": "0" * 32,
        "label": "telltale",
        "method": "tests.bad_input.test_secrets:Telltale",
        "version": 1,
        "params": {},
        "inputs": {},
        "seed": 0,
        "precision": "float32",
        "data": "bundled",
    }
    return StageSpec.model_validate({k: v for k, v in fields.items() if k in StageSpec.model_fields})


def test_a_methods_error_is_stored_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    result = run_spec(_spec(), tmp_path, lambda sign: None)
    stored = result.model_dump_json()
    assert result.state == "failed"
    assert "horse" not in stored
    assert "login with [HF_TOKEN removed] failed" in result.message
    assert "login with [HF_TOKEN removed] failed" in result.traceback


def test_a_worker_logs_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "spec").write_text(_spec().model_dump_json())
    request = json.dumps({"spec": str(tmp_path / "spec"), "result": str(tmp_path / "result")})
    done = subprocess.run(
        [sys.executable, "-m", "harness.execute.worker", str(tmp_path)],
        input=request + "\n",
        env={**os.environ, "HF_TOKEN": "correct-horse"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "printed [HF_TOKEN removed]" in done.stderr
    assert "shouted [HF_TOKEN removed]" in done.stderr
    assert "horse" not in done.stdout + done.stderr + (tmp_path / "result").read_text()


def test_an_error_on_the_terminal_shows_neither_secrets_nor_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    assert main(["plan", str(tmp_path / "correct-horse\x1b]0;title\x07.yaml")]) == 2
    said = capsys.readouterr().err
    assert "[HF_TOKEN removed]\\x1b]0;title\\x07.yaml: no such file" in said


def test_a_fault_of_the_harness_is_written_down_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError(f"{os.environ['HF_TOKEN']} \ud800 \x1b[31m")

    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    monkeypatch.setattr("harness.suite.load_suite", broken)
    assert main(["plan", "s.yaml", "--results", str(tmp_path)]) == 1
    said, logged = capsys.readouterr().err, (tmp_path / "traceback.log").read_text()
    assert "horse" not in said + logged
    assert "[HF_TOKEN removed]" in said
    assert "\\x1b[31m" in said
    assert "Traceback" in logged


def test_provenance_holds_nothing_of_the_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.provenance import environment

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MY_OWN_VARIABLE", "of-mine")
    environment.cache_clear()
    text = environment().text
    assert "horse" not in text
    assert "of-mine" not in text
