"""`--to`: what it may say, and that what arrives is what `harness verify` accepts."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from harness.cli import main
from harness.errors import UserError
from harness.publish import publish, publish_to, verify
from harness.publish._destinations import Folder, GitBranch, HubRepo, parse
from harness.store import Store
from tests.publish.conftest import NOW
from tests.publish.exports import change_table, signed
from tests.publish.hub import TOKEN, serving
from tests.publish.sites import contents, git
from tests.report.stores import Change, derive, keep, nothing
from tests.store.scenario import SWEEP

OTHER = "other_suite-99aabbcc"
LATER = NOW + datetime.timedelta(days=1)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("site", Folder(Path("site"))),
        ("./git:x", Folder(Path("git:x"))),
        ("/a/b#c", Folder(Path("/a/b#c"))),
        ("git:origin#gh-pages", GitBranch("origin", "gh-pages")),
        ("git:git@github.com:lab/board.git#gh-pages", GitBranch("git@github.com:lab/board.git", "gh-pages")),
        ("git:https://example.org/a#b.git#boards/x", GitBranch("https://example.org/a#b.git", "boards/x")),
        ("git:../board.git#pages", GitBranch("../board.git", "pages")),
        ("hf:lab/board", HubRepo("dataset", "lab/board")),
        ("hf:datasets/lab/board", HubRepo("dataset", "lab/board")),
        ("hf:spaces/lab/board", HubRepo("space", "lab/board")),
    ],
)
def test_destinations(text: str, found: object) -> None:
    assert parse(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a folder"),
        ("git:origin", "expected git:REMOTE#BRANCH"),
        ("git:#pages", "expected git:REMOTE#BRANCH"),
        ("git:origin#", "expected git:REMOTE#BRANCH"),
        ("git:origin#a b", "git allows no such branch"),
        ("git:--exec=x#pages", "expected the URL, path or name"),
        ("git:ext::sh -c x#pages", "transport helpers"),
        ("https://github.com/lab/board", "a URL is no folder"),
        ("git@github.com:lab/board.git", "a URL is no folder"),
        ("hf:board", "expected hf:ORG/NAME"),
        ("hf:lab/", "expected hf:ORG/NAME"),
        ("hf:spaces/board", "expected hf:ORG/NAME"),
        ("hf:models/lab/board", "expected hf:ORG/NAME"),
        ("hf:lab/bo ard", "expected hf:ORG/NAME"),
        ("hf:lab/../x", "expected hf:ORG/NAME"),
        ("hf:lab/a--b", "expected hf:ORG/NAME"),
    ],
)
def test_what_is_none(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(text)


def test_credentials_in_a_bad_destination_are_not_repeated() -> None:
    for text in ("git:https://ada:swordfish9@example.org/x", "https://ada:swordfish9@example.org/x"):
        with pytest.raises(UserError) as refused:
            parse(text)
        assert "swordfish9" not in str(refused.value)


@pytest.fixture(scope="module")
def ours(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scenario with one of its figures."""
    few = pl.col("metric") == "gold_reward"
    changes: dict[str, Change] = {"samples": keep(few), "judge_votes": nothing, "profile_samples": nothing}
    changes["human_ratings"] = nothing
    return derive(store, tmp_path_factory.mktemp("ours") / "results", changes)


@pytest.fixture(scope="module")
def theirs(ours: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same, measured by somebody else as a sweep of another name."""
    tables = ("sweep_events", "trial_events", "stage_links", "measurement_links", "failure_events")
    renamed: dict[str, Change] = dict.fromkeys(tables, lambda f: f.with_columns(pl.lit(OTHER).alias("sweep")))
    return derive(ours, tmp_path_factory.mktemp("theirs") / "results", renamed)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A branch of an empty repository."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git("init", "--quiet", "--bare", str(tmp_path / "remote.git"))
    return f"git:{tmp_path / 'remote.git'}#pages"


def _cloned(to: str, place: Path) -> Path:
    address, _, branch = to.removeprefix("git:").rpartition("#")
    shutil.rmtree(place, ignore_errors=True)
    git("clone", "--quiet", "-b", branch, address, str(place))
    return place


def _sweeps(board: Path) -> list[str]:
    rows = json.loads((board / "data/entries.json").read_text())
    return sorted({r["sweep"] for r in rows})


def test_a_branch_holds_what_a_folder_would(ours: Store, remote: str, tmp_path: Path) -> None:
    done = publish_to(ours, [SWEEP], remote, now=NOW)
    assert (done.place, done.changed, done.entries, done.kept) == (remote.removeprefix("git:"), True, 6, 0)
    clone = _cloned(remote, tmp_path / "clone")
    assert verify(clone) == []
    publish(ours, [SWEEP], tmp_path / "site", now=NOW)
    assert contents(clone, ".git", ".nojekyll", ".gitattributes") == contents(tmp_path / "site")
    # What is put beside the board is no part of it, unless it passes for one.
    (clone / "CNAME").write_text("board.example.org")
    assert verify(clone) == []
    (clone / "entries" / "CNAME").write_text("x")
    assert [str(d) for d in verify(clone)] == [
        "the file entries/CNAME is not of the export: the manifest does not list it"
    ]


def test_others_sweeps_stay_and_the_same_again_changes_nothing(
    ours: Store, theirs: Store, remote: str, tmp_path: Path
) -> None:
    publish_to(ours, [SWEEP], remote, now=NOW)
    done = publish_to(theirs, [OTHER], remote, now=LATER)
    assert (done.entries, done.kept, done.changed) == (12, 6, True)
    clone = _cloned(remote, tmp_path / "clone")
    assert verify(clone) == []
    assert _sweeps(clone) == sorted([SWEEP, OTHER])
    # Ranks are over all of them.
    assert {r["ranked"] for r in json.loads((clone / "data/entries.json").read_text())} == {12}
    for who, sweep in ((ours, SWEEP), (theirs, OTHER)):
        again = publish_to(who, [sweep], remote, now=LATER + datetime.timedelta(days=1))
        assert (again.entries, again.kept, again.changed) == (12, 6, False)
    git("fetch", "--quiet", at=clone)
    assert git("rev-list", "--count", "origin/pages", at=clone) == "2"


def test_entries_that_were_measured_again_take_the_place_of_the_old(ours: Store, remote: str, tmp_path: Path) -> None:
    publish_to(ours, [SWEEP], remote, now=NOW)
    halved: dict[str, Change] = {"samples": lambda f: f.with_columns(pl.col("score") * 0.5)}
    again = derive(ours, tmp_path / "again", halved)
    done = publish_to(again, [SWEEP], remote, now=LATER)
    assert (done.entries, done.conflicts, done.kept, done.changed) == (6, 0, 0, True)
    assert verify(_cloned(remote, tmp_path / "clone")) == []


def test_a_board_that_is_not_what_its_samples_say_keeps_nothing(
    ours: Store, theirs: Store, remote: str, tmp_path: Path
) -> None:
    publish_to(ours, [SWEEP], remote, now=NOW)
    clone = _cloned(remote, tmp_path / "clone")
    change_table(clone, "data/entries.parquet", lambda f: f.with_columns(pl.col("value") + 0.1))
    signed(clone)
    mine = ["-c", "user.name=o", "-c", "user.email=o@example.org"]
    for command in (["add", "--all"], [*mine, "commit", "--quiet", "-m", "better"], ["push", "--quiet"]):
        git(*command, at=clone)
    with pytest.raises(UserError, match="the board that is there is not what its samples say"):
        publish_to(theirs, [OTHER], remote)
    assert _sweeps(_cloned(remote, tmp_path / "clone")) == [SWEEP]
    # Its own publisher simply puts it right.
    assert publish_to(ours, [SWEEP], remote, now=NOW).changed
    assert verify(_cloned(remote, tmp_path / "clone")) == []


def test_nothing_is_sent_where_nothing_can_be_published(ours: Store, remote: str) -> None:
    with pytest.raises(UserError, match="no sweep or suite 'nosuch'"):
        publish_to(ours, ["nosuch"], remote)
    assert git("ls-remote", remote.removeprefix("git:").rpartition("#")[0]) == ""


def test_the_command_says_what_it_did(
    ours: Store, remote: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--results", str(ours.results)]
    assert main(["publish", SWEEP, "--to", remote, *where]) == 0
    assert "6 entries, 6 figures; sent" in capsys.readouterr().out
    assert main(["publish", SWEEP, "--to", remote, *where]) == 0
    assert "it is all there already, nothing was sent" in capsys.readouterr().out
    assert main(["publish", SWEEP, "--to", str(tmp_path / "site"), *where]) == 0
    assert "open index.html" in capsys.readouterr().out
    assert main(["publish", SWEEP, "--to", "git:nowhere", *where]) == 2
    assert "expected git:REMOTE#BRANCH" in capsys.readouterr().err


def test_the_hub_by_the_command_and_back(ours: Store, theirs: Store, tmp_path: Path) -> None:
    """In processes of their own, as the libraries read their settings when they are imported."""
    program = (
        "import sys\nfrom harness.cli import main\n"
        "for results, sweep in (sys.argv[1:3], sys.argv[3:5], sys.argv[1:3]):\n"
        "    assert main(['publish', sweep, '--to', 'hf:lab/board', '--results', results]) == 0\n"
        "from huggingface_hub import snapshot_download\n"
        "snapshot_download('lab/board', repo_type='dataset', local_dir='board')\n"
        "assert main(['verify', 'board']) == 0\n"
    )
    with serving() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": TOKEN,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", program, str(ours.results), SWEEP, str(theirs.results), OTHER]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        made = hub.repositories["dataset", "lab/board"]
        sent = made.commits[-1]
    assert TOKEN not in done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if "entries" in line]
    assert said[0].startswith(f"{hub.endpoint}/datasets/lab/board: 6 entries")
    assert "12 entries (6 of sweeps that were there already)" in said[1]
    assert "nothing was sent" in said[2]
    assert len(made.commits) == 3
    arrived = contents(tmp_path / "board", ".cache")
    assert arrived == sent
    assert _sweeps(tmp_path / "board") == sorted([SWEEP, OTHER])
