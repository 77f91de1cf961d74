"""A hub that is down, slow or talks nonsense, played by a real server: one line that says what happened, code 2."""

import contextlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.conftest import suite_text

ROOT = Path(__file__).parents[2]

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\0" * 1000,
    "tokenizer.json": b'{"model": {}}',
}

MODELS = {
    "m-404": "the hub has no such repository",
    "m-401": "the hub knows no such repository, or only for those with a token",
    "m-403": "access to it is restricted; accept its terms",
    "m-500": "the hub answered with an error (500)",
    "m-html": "what answered is no hub",
    "m-bytes": "what answered is no hub",
    "m-hang": "the hub did not answer in time",
    "m-cut": "the download broke off",
    "m-false": "model.safetensors: no safetensors file",
}
DATASETS = {
    "d-404": "the hub has no such repository",
    "d-401": "the hub knows no such repository, or only for those with a token",
    "d-403": "access to it is restricted; accept its terms",
    "d-500": "the hub answered with an error (500)",
    "d-html": "what answered is no hub",
    "d-hang": "the hub did not answer in time",
}


class _Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the name of the repository says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _send(self, code: int, body: bytes, kind: str = "application/json", *, length: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", f'"{len(body):040x}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        if code == 403:
            self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = self.close_connection or length is not None

    def do_GET(self) -> None:
        """Every request."""
        mode = next((m.partition("-")[2] for m in (*MODELS, *DATASETS) if f"/{m}" in self.path), "404")
        name = self.path.rpartition("/")[2].partition("?")[0]
        if mode == "hang":
            self.server.stop.wait(20)  # type: ignore[attr-defined]  # set by the fixture
            self.close_connection = True
        elif mode.isdecimal():
            self._send(int(mode), b'{"error": "no"}')
        elif mode == "html":
            self._send(200, b"<html>Please log in to this network</html>", "text/html")
        elif mode == "bytes":
            self._send(200, b"\x80\x81\xff", "application/octet-stream")
        elif "/tree/" in self.path:
            tree = [{"type": "file", "path": n, "size": len(c), "oid": f"{len(c):040x}"} for n, c in FILES.items()]
            self._send(200, json.dumps(tree).encode())
        elif self.path.startswith("/api/"):
            siblings = [{"rfilename": n} for n in FILES]
            self._send(200, json.dumps({"id": "org/m", "sha": "a" * 40, "siblings": siblings}).encode())
        elif name in FILES:
            cut = mode == "cut" and name == "model.safetensors" and self.command == "GET"
            body = FILES[name][: 500 if cut else None]
            self._send(200, body, "application/octet-stream", length=len(FILES[name]) if cut else None)
        else:
            self._send(404, b"{}")

    do_HEAD = do_POST = do_GET  # noqa: N815  # names of the library's


@contextlib.contextmanager
def _hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.daemon_threads = True
    server.stop = threading.Event()  # type: ignore[attr-defined]  # for the handlers
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.stop.set()  # type: ignore[attr-defined]  # as above
        server.shutdown()
        server.server_close()


# One process for all: importing the libraries takes longer than all the failures together.
PROGRAM = """
import contextlib, io, json, sys, time
from harness.cli import main
for name in sys.argv[1:]:
    said, before = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(["plan", f"{name}.yaml", "--results", "results"])
    print(json.dumps([name, code, said.getvalue(), time.monotonic() - before]), flush=True)
"""


def _plan(folder: Path, endpoint: str, model: Path, names: list[str]) -> dict[str, tuple[int, str, float]]:
    for name in names:
        mine = {"models": f"[org/{name}]"} if name.startswith("m-") else {"models": f"[{model}]", "data": "hub"}
        recipes = "{a: [{sft: {steps: 1}}]}"
        if name.startswith("d-"):
            recipes = f"{{a: [{{sft: {{dataset: org/{name}}}}}]}}"
        (folder / f"{name}.yaml").write_text(suite_text(**mine, recipes=recipes, measure="{profile: {}}"))
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": "hf_notATokenButSecretAllTheSame",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "hf_notAToken" not in done.stdout + done.stderr
    return {name: (code, said, spent) for name, code, said, spent in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def answers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, float]]:
    """What `harness plan` says of each repository of the hub."""
    with _hub() as endpoint:
        return _plan(tmp_path_factory.mktemp("hub"), endpoint, tiny_model, [*MODELS, *DATASETS])


@pytest.mark.parametrize(("name", "reason"), [*MODELS.items(), *DATASETS.items()])
def test_what_the_hub_did_is_said_in_a_line(answers: Any, name: str, reason: str) -> None:
    code, said, spent = answers[name]
    assert code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("harness: ")]
    assert len(lines) == 1, said
    assert reason in lines[0]
    assert f"org/{name}" in lines[0]
    assert "Traceback" not in said
    assert spent < 60


def test_a_hub_that_is_not_there(tiny_model: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = time.monotonic()
    found = _plan(tmp_path, f"http://127.0.0.1:{port}", tiny_model, ["m-none", "d-none"])
    assert time.monotonic() - before < 120
    for name, (code, said, _) in found.items():
        assert code == 2, said
        assert f"org/{name}" in said
        assert "the hub cannot be reached" in said
        assert "a folder, or a bundled name" in said
