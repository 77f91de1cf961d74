"""A real push to a real repository: what arrives, what stays, and what is said where it is refused."""

import hashlib
import http.server
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.publish._git import push
from tests.publish.sites import ENTRY, contents, git, write_site

FIRST = {"index.html": b"<h1>one</h1>\r\n", ENTRY.format(1): b"a\n", ENTRY.format(2): bytes(range(256))}
SECOND = {"index.html": b"<h1>two</h1>\r\n", ENTRY.format(2): bytes(range(256)), ENTRY.format(3): b"c"}
HOSTS = {".nojekyll": b"", ".gitattributes": b"* -text\n"}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nobody's settings; and whatever is put into the temporary folder must be gone in the end."""
    settings = tmp_path / "gitconfig"
    settings.touch()
    for name, value in (("GLOBAL", str(settings)), ("SYSTEM", "/dev/null")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    scratch = tmp_path / "temporary"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    # Not a repository of this project, whose own settings git would take.
    monkeypatch.chdir(tmp_path)
    yield settings
    assert list(scratch.iterdir()) == []


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """An empty bare repository."""
    made = tmp_path / "remote.git"
    git("init", "--quiet", "--bare", str(made))
    return made


def _making(tmp_path: Path, *sites: dict[str, bytes]) -> tuple[Callable[[Path | None], Path], list[Path | None]]:
    """What makes these sites one after the other, the last again and again; and what boards it was given."""
    given: list[dict[str, bytes] | None] = []

    def make(earlier: Path | None) -> Path:
        given.append(None if earlier is None else contents(earlier))
        number = len(list(tmp_path.glob("site-*")))
        return write_site(tmp_path / f"site-{number}", sites[min(len(given), len(sites)) - 1])

    return make, given  # type: ignore[return-value]  # the contents of those boards


def _cloned(remote: Path, tmp_path: Path, branch: str = "pages") -> dict[str, bytes]:
    clone = tmp_path / f"clone-{len(list(tmp_path.glob('clone-*')))}"
    git("clone", "--quiet", "-b", branch, str(remote), str(clone))
    found = contents(clone, ".git")
    found.pop("manifest.json")
    return found


def _commit(remote: Path, tmp_path: Path, files: dict[str, bytes], branch: str = "pages") -> None:
    """Somebody else's commit on the branch."""
    other = tmp_path / f"other-{len(list(tmp_path.glob('other-*')))}"
    git("clone", "--quiet", str(remote), str(other))
    if git("ls-remote", str(remote), f"refs/heads/{branch}", at=other):
        git("checkout", "--quiet", branch, at=other)
    else:
        git("checkout", "--quiet", "--orphan", branch, at=other)
    for name, content in files.items():
        path = other / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    git("add", "--all", at=other)
    git("-c", "user.name=o", "-c", "user.email=o@example.org", "commit", "--quiet", "-m", "theirs", at=other)
    git("push", "--quiet", str(remote), f"HEAD:refs/heads/{branch}", at=other)


def test_an_empty_repository_gets_one_commit_by_nobody_in_particular(remote: Path, tmp_path: Path) -> None:
    make, given = _making(tmp_path, FIRST)
    assert push(make, str(remote), "pages")
    assert given == [None]
    assert _cloned(remote, tmp_path) == FIRST | HOSTS
    who = "posttrain-harness <posttrain-harness@localhost>"
    assert git("log", "--format=%an <%ae>|%cn <%ce>|%ai", "pages", at=remote).startswith(f"{who}|{who}|")
    assert git("log", "--format=%ad", "--date=format:%z", "pages", at=remote) == "+0000"


def test_a_second_board_takes_the_place_of_the_first_and_nothing_else(remote: Path, tmp_path: Path) -> None:
    others = {"CNAME": b"board.example.org\n", "about/index.html": b"us", "README.md": b"r", ".nojekyll": b"mine"}
    _commit(remote, tmp_path, others)
    assert push(_making(tmp_path, FIRST)[0], str(remote), "pages")
    before = git("rev-parse", "pages", at=remote)
    make, given = _making(tmp_path, SECOND)
    assert push(make, str(remote), "pages")
    assert set(given[0] or {}) == {*FIRST, "manifest.json"}
    assert _cloned(remote, tmp_path) == SECOND | HOSTS | others
    assert git("rev-parse", "pages^", at=remote) == before
    assert git("rev-list", "--count", "pages", at=remote) == "3"


def test_nothing_new_is_no_commit(remote: Path, tmp_path: Path) -> None:
    assert push(_making(tmp_path, FIRST)[0], str(remote), "pages")
    before = git("rev-parse", "pages", at=remote)
    assert not push(_making(tmp_path, FIRST)[0], str(remote), "pages")
    assert git("rev-parse", "pages", at=remote) == before


def test_who_pushes_at_the_same_time_loses_nothing(remote: Path, tmp_path: Path) -> None:
    for first in (True, False):
        make, given = _making(tmp_path, FIRST if first else SECOND)

        def racing(earlier: Path | None, number: int = int(first), make: Callable[..., Path] = make) -> Path:
            if not (tmp_path / f"raced-{number}").exists():
                (tmp_path / f"raced-{number}").touch()
                _commit(remote, tmp_path, {f"theirs-{number}": b"x"})
            return make(earlier)

        assert push(racing, str(remote), "pages")
        assert len(given) == 2
    assert _cloned(remote, tmp_path) == SECOND | HOSTS | {"theirs-1": b"x", "theirs-0": b"x"}
    assert git("rev-list", "--count", "pages", at=remote) == "4"


def test_a_branch_that_moves_again_and_again_is_left_alone(remote: Path, tmp_path: Path) -> None:
    make, _ = _making(tmp_path, FIRST)

    def racing(earlier: Path | None) -> Path:
        site = make(earlier)
        _commit(remote, tmp_path, {f"theirs-{site.name}": b"x"})
        return site

    with pytest.raises(UserError, match="pushed to by others at the same time"):
        push(racing, str(remote), "pages")
    assert set(_cloned_names(remote)) == {"theirs-site-0", "theirs-site-1"}


def _cloned_names(remote: Path) -> list[str]:
    return git("ls-tree", "-r", "--name-only", "pages", at=remote).splitlines()


def test_a_hooks_refusal_is_told_in_its_words(remote: Path, tmp_path: Path) -> None:
    hook = remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'boards are published on Mondays only' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(UserError) as refused:
        push(_making(tmp_path, FIRST)[0], str(remote), "pages")
    assert "boards are published on Mondays only" in str(refused.value)
    assert "hook declined" in str(refused.value)
    assert git("for-each-ref", at=remote) == ""


@pytest.mark.parametrize("theirs", ["index.html", "entries", "manifest.json/x", f"{ENTRY.format(1)}/deep"])
def test_others_files_are_not_written_over(remote: Path, tmp_path: Path, theirs: str) -> None:
    _commit(remote, tmp_path, {theirs: b"mine"})
    with pytest.raises(UserError, match="which is not of an earlier board"):
        push(_making(tmp_path, FIRST)[0], str(remote), "pages")
    assert _cloned_names(remote) == [theirs]


def test_a_manifest_of_another_kind_is_another_s_file(remote: Path, tmp_path: Path) -> None:
    _commit(remote, tmp_path, {"manifest.json": b'{"name": "a web app"}'})
    make, given = _making(tmp_path, FIRST)
    with pytest.raises(UserError, match=r"'manifest\.json'"):
        push(make, str(remote), "pages")
    assert given == [None]


@pytest.mark.parametrize("listed", ["CNAME", "../up", ".git/config"])
def test_a_hostile_board_cannot_have_others_files_removed(remote: Path, tmp_path: Path, listed: str) -> None:
    board = contents(write_site(tmp_path / "bad", {"index.html": b"x"}))
    board["manifest.json"] = board["manifest.json"].replace(b'"index.html"', f'"{listed}"'.encode())
    _commit(remote, tmp_path, {**board, "CNAME": b"board.example.org"})
    with pytest.raises(UserError, match="remove it to begin anew"):
        push(_making(tmp_path, FIRST)[0], str(remote), "pages")
    assert "CNAME" in _cloned_names(remote)


def test_a_newer_board_is_not_taken_away(remote: Path, tmp_path: Path) -> None:
    _commit(remote, tmp_path, contents(write_site(tmp_path / "new", FIRST, version=1000)))
    with pytest.raises(UserError, match="format version 1000"):
        push(_making(tmp_path, SECOND)[0], str(remote), "pages")


def test_links_of_a_hostile_branch_lead_nowhere(remote: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    board = write_site(tmp_path / "bad", {"index.html": b"x", ENTRY.format(1): b"y"})
    _commit(remote, tmp_path, contents(board))
    other = tmp_path / "link"
    git("clone", "--quiet", "-b", "pages", str(remote), str(other))
    (other / "index.html").unlink()
    (other / "index.html").symlink_to(tmp_path / "secret")
    git("add", "--all", at=other)
    git("-c", "user.name=o", "-c", "user.email=o@example.org", "commit", "--quiet", "-m", "link", at=other)
    git("push", "--quiet", at=other)
    make, given = _making(tmp_path, SECOND)
    assert push(make, str(remote), "pages")
    assert "index.html" not in (given[0] or {})
    assert _cloned(remote, tmp_path) == SECOND | HOSTS
    assert (tmp_path / "secret").read_text() == "secret"


def test_bytes_are_those_of_the_site_whatever_settings_say(remote: Path, tmp_path: Path, temporary: Path) -> None:
    temporary.write_text('[core]\nautocrlf = true\n[filter "up"]\nclean = tr a-z A-Z\nsmudge = cat\n')
    _commit(remote, tmp_path, {".gitattributes": b"*.html text eol=lf filter=up\n"})
    assert push(_making(tmp_path, FIRST)[0], str(remote), "pages")
    for name, content in FIRST.items():
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        assert git("rev-parse", f"pages:{name}", at=remote) == oid


def test_the_user_is_the_author_as_git_knows_them(remote: Path, tmp_path: Path, temporary: Path) -> None:
    temporary.write_text("[user]\nname = Ada Lovelace\nemail = ada@example.org\n")
    assert push(_making(tmp_path, FIRST)[0], str(remote), "pages")
    assert git("log", "--format=%an <%ae> %cn", "pages", at=remote) == "Ada Lovelace <ada@example.org> Ada Lovelace"


def test_a_remote_by_its_name_and_a_branch_with_a_slash(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    git("init", "--quiet", str(mine))
    git("remote", "add", "origin", str(remote), at=mine)
    monkeypatch.chdir(mine)
    # As a hook of that repository would have it.
    monkeypatch.setenv("GIT_DIR", str(mine / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(mine / ".git" / "index"))
    assert push(_making(tmp_path, FIRST)[0], "origin", "boards/2026")
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_INDEX_FILE")
    assert _cloned(remote, tmp_path, "boards/2026") == FIRST | HOSTS
    assert not (mine / ".git" / "index").exists()
    assert list((mine / ".git" / "objects").glob("??")) == []


@pytest.mark.parametrize(
    "bad", ["-oProxyCommand=touch pwned", "ext::sh -c 'touch pwned'", "--upload-pack=touch pwned", "a\nb", "fd::3", ""]
)
def test_a_remote_that_would_run_something_is_refused(tmp_path: Path, bad: str) -> None:
    make, given = _making(tmp_path, FIRST)
    with pytest.raises(UserError):
        push(make, bad, "pages")
    assert given == []
    assert not (tmp_path / "pwned").exists()


def test_a_setting_does_not_bring_helpers_back(tmp_path: Path, temporary: Path) -> None:
    temporary.write_text(
        '[protocol "ext"]\nallow = always\n[url "ext::sh -c \'touch pwned\' "]\ninsteadOf = https://example.org/\n'
    )
    with pytest.raises(UserError, match="expected https, ssh, git, or a folder"):
        push(_making(tmp_path, FIRST)[0], "https://example.org/x", "pages")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("bad", ["-f", "a..b", "a b", "", "HEAD", "refs/heads/x", "x.lock", "a:b", "a\nb"])
def test_a_branch_that_git_refuses(remote: Path, tmp_path: Path, bad: str) -> None:
    with pytest.raises(UserError, match="git allows no such branch"):
        push(_making(tmp_path, FIRST)[0], str(remote), bad)


def test_no_repository_there(tmp_path: Path) -> None:
    make, given = _making(tmp_path, FIRST)
    with pytest.raises(UserError, match=r"(?s)nowhere\.git#pages cannot be read: git says:.*check the address"):
        push(make, str(tmp_path / "nowhere.git"), "pages")
    assert given == []


def test_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is not installed"):
        push(_making(tmp_path, FIRST)[0], "x", "pages")


class _Guarded(http.server.BaseHTTPRequestHandler):
    """Wants a password, and likes none."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """Every request."""
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="boards"')
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize("who", ["", "ada:swordfish-9@", "tokenwithoutshape42@"])
def test_no_question_for_a_password_and_none_shown(tmp_path: Path, who: str) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(UserError, match="asks for no password here") as refused:
            push(_making(tmp_path, FIRST)[0], f"http://{who}127.0.0.1:{server.server_port}/board.git", "pages")
    finally:
        server.shutdown()
        server.server_close()
    said = str(refused.value)
    assert f"http://127.0.0.1:{server.server_port}/board.git" in said
    assert "swordfish" not in said
    assert "tokenwithout" not in said
