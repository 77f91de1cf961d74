"""The doctor: quick, never hanging, and right about what it can be checked on."""

import io
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from harness import doctor
from harness.doctor import Finding, diagnose, print_doctor


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return diagnose(network=False)


def test_importing_the_doctor_imports_no_torch() -> None:
    code = "import sys, harness.doctor; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_section_is_there_and_every_missing_thing_says_what_for(findings: list[Finding]) -> None:
    sections = list(dict.fromkeys(f.section for f in findings))
    assert sections == ["hardware", "packages", "models", "data", "extras", "targets"]
    assert all(f.enables for f in findings if f.state == "missing" and f.section != "targets")


def test_versions_are_those_installed(findings: list[Finding]) -> None:
    found = {f.name: f for f in findings if f.section == "packages"}
    assert found["torch"].detail == version("torch")
    assert "pytest" not in found


def test_a_package_too_old_or_absent_is_said() -> None:
    assert doctor._package(Requirement("rich>=9999")).state == "warn"
    absent = doctor._package(Requirement("a-package-that-is-not-there>=2"))
    assert (absent.state, absent.enables) == ("missing", "pip install 'a-package-that-is-not-there>=2'")


def test_targets_follow_the_hardware(findings: list[Finding]) -> None:
    import torch

    states = {f.name: f.state for f in findings if f.section == "targets"}
    assert states["cpu float32"] == "ok"
    assert (states["cuda float32"] == "ok") == torch.cuda.is_available()


def test_every_device_type_backend_and_attention_is_answered_with_a_reason(findings: list[Finding]) -> None:
    from harness.targets import Target

    named = " ".join(f.name for f in findings if f.section == "targets")
    told = {f.name: f.detail for f in findings if f.section == "targets"}
    schema = Target.model_json_schema()["properties"]
    for value in [*(v for key in ("dtype", "backend", "attention") for v in schema[key]["enum"]), "auto", "offload"]:
        assert value in named
    assert all(detail.startswith("yes") or len(detail.removeprefix("no: ")) > 10 for detail in told.values())
    assert all(f.detail.startswith("no: ") == (f.state == "missing") for f in findings if f.section == "targets")
    assert told["cpu float16"].startswith("no: float16 on a CPU")


def test_an_energy_counter_is_there_or_its_absence_explained(findings: list[Finding]) -> None:
    from harness.measure._energy import rapl_counters

    (found,) = [f for f in findings if f.name == "energy (cpu)"]
    assert (found.state == "ok") == bool(rapl_counters())
    assert found.detail


def test_a_model_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "model_problem", lambda name: "not here")
    assert [(f.state, f.detail) for f in doctor._models()] == [("missing", "not here")]


def test_a_hub_that_never_answers_does_not_hang() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        problem = doctor._hub_problem(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert problem
    assert "cannot be reached" in problem
    assert time.monotonic() - start < 6


@pytest.mark.parametrize(("status", "reachable"), [("200 OK", True), ("404 Not Found", True), ("503 Busy", False)])
def test_a_hub_that_answers(status: str, reachable: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        problem = doctor._hub_problem(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert (problem is None) == reachable


def test_an_address_that_is_none_is_not_opened() -> None:
    assert "not a web address" in str(doctor._hub_problem("file:///etc/hostname"))


def test_what_is_printed_is_no_markup() -> None:
    out = io.StringIO()
    made = [Finding("extras", "[bold]x", "missing", "pip install 'a[b]'", "c"), Finding("data", "y", "ok", "fine")]
    print_doctor(Console(file=out, width=120), made)
    text = out.getvalue()
    assert "[bold]x" in text
    assert "pip install 'a[b]'; would enable c" in text
    assert text.index("extras") < text.index("data")
