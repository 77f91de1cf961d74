"""What reaches a hub that speaks its API over HTTP, byte for byte, and what is said where it refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from harness.errors import UserError
from harness.publish import _hub_push
from harness.publish._hub_push import push
from tests.publish.hub import SPACE, TOKEN, Hub, Repository, serving
from tests.publish.sites import ENTRY, contents, write_site

FIRST = {"index.html": b"<h1>one</h1>", ENTRY.format(1): b"a" * 5000, ENTRY.format(2): bytes(range(256))}
SECOND = {"index.html": b"<h1>two</h1>", ENTRY.format(2): bytes(range(256)), ENTRY.format(3): b"c" * 3000}
NAME = "lab/board"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process takes for the Hub."""
    with serving() as made:
        for name, value in (("ENDPOINT", made.endpoint), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        address = "{endpoint}/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address.replace("{endpoint}", made.endpoint))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


def _making(tmp_path: Path, *sites: dict[str, bytes]) -> tuple[Callable[[Path | None], Path], list[object]]:
    given: list[object] = []

    def make(earlier: Path | None) -> Path:
        given.append(None if earlier is None else contents(earlier))
        number = len(list(tmp_path.glob("site-*")))
        return write_site(tmp_path / f"site-{number}", sites[min(len(given), len(sites)) - 1])

    return make, given


def _board(repository: Repository) -> dict[str, bytes]:
    """The head's files but for the manifest and what is no board's."""
    left_out = ("manifest.json", "README.md", ".gitattributes")
    return {n: c for n, c in repository.at("main").items() if n not in left_out}


def test_a_dataset_is_made_and_holds_the_bytes_of_the_site(hub: Hub, tmp_path: Path) -> None:
    make, given = _making(tmp_path, FIRST)
    assert push(make, NAME) == (f"{hub.endpoint}/datasets/{NAME}", True)
    assert given == [None]
    made = hub.repositories["dataset", NAME]
    site = contents(tmp_path / "site-0")
    head = made.at("main")
    assert {n: c for n, c in head.items() if n not in ("README.md", ".gitattributes")} == site
    # Small files within the commit, the large one by LFS.
    assert list(hub.stored.values()) == [FIRST[ENTRY.format(1)]]
    assert len(made.commits) == 2
    facts = huggingface_hub.DatasetCard(head["README.md"].decode()).data.to_dict()
    assert [(c["config_name"], c["data_files"]) for c in facts["configs"]] == [
        ("entries", "data/entries.parquet"),
        ("samples", "data/samples.parquet"),
    ]
    assert TOKEN not in "".join(c.decode("latin-1") for c in head.values())


def test_a_second_board_in_one_commit_and_others_files_stay(hub: Hub, tmp_path: Path) -> None:
    push(_making(tmp_path, FIRST)[0], NAME)
    made = hub.repositories["dataset", NAME]
    made.commits.append({**made.at("main"), "notes.txt": b"ours", "README.md": b"---\nlicense: mit\n---\nOur own."})
    make, given = _making(tmp_path, SECOND)
    assert push(make, NAME)[1]
    assert given == [contents(tmp_path / "site-0")]
    assert _board(made) == SECOND | {"notes.txt": b"ours"}
    assert made.at("main")["README.md"].endswith(b"Our own.")
    assert len(made.commits) == 4
    # What was there already is not sent again.
    assert sum("/stored/" in a for a in hub.asked) == 2


def test_nothing_new_is_no_commit(hub: Hub, tmp_path: Path) -> None:
    push(_making(tmp_path, FIRST)[0], NAME)
    before = len(hub.asked)
    assert not push(_making(tmp_path, FIRST)[0], NAME)[1]
    assert len(hub.repositories["dataset", NAME].commits) == 2
    assert not [a for a in hub.asked[before:] if a.startswith("POST")]


def test_what_was_changed_there_by_hand_is_put_right(hub: Hub, tmp_path: Path) -> None:
    push(_making(tmp_path, FIRST)[0], NAME)
    made = hub.repositories["dataset", NAME]
    made.commits.append({**made.at("main"), "index.html": b"<h1>ours is best</h1>"})
    assert push(_making(tmp_path, FIRST)[0], NAME)[1]
    assert _board(made) == FIRST


@pytest.mark.parametrize("there", [False, True])
def test_a_new_space_gets_the_board_for_the_hubs_welcome(hub: Hub, tmp_path: Path, there: bool) -> None:
    if there:
        hub.repositories["space", NAME] = Repository("static")
        hub.repositories["space", NAME].commits[0] |= SPACE
    assert push(_making(tmp_path, FIRST)[0], NAME, "space") == (f"{hub.endpoint}/spaces/{NAME}", True)
    made = hub.repositories["space", NAME]
    assert made.sdk == "static"
    assert _board(made) == FIRST
    facts = huggingface_hub.SpaceCard(made.at("main")["README.md"].decode()).data.to_dict()
    assert (facts["sdk"], facts["app_file"], facts["title"]) == ("static", "index.html", "board")


def test_a_space_with_a_page_of_its_own_keeps_it(hub: Hub, tmp_path: Path) -> None:
    made = hub.repositories["space", NAME] = Repository("static")
    made.commits[0] |= {**SPACE, "index.html": b"<h1>my page</h1>"}
    with pytest.raises(UserError, match=r"'index\.html'.*not of an earlier board"):
        push(_making(tmp_path, FIRST)[0], NAME, "space")
    assert len(made.commits) == 1


def test_a_space_of_another_kind(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["space", NAME] = Repository("gradio")
    with pytest.raises(UserError, match="of the kind 'gradio'; expected a static one"):
        push(_making(tmp_path, FIRST)[0], NAME, "space")


def test_a_gitignore_that_could_swallow_files(hub: Hub, tmp_path: Path) -> None:
    made = hub.repositories["dataset", NAME] = Repository()
    made.commits[0][".gitignore"] = b"data/\n"
    with pytest.raises(UserError, match=r"has a \.gitignore"):
        push(_making(tmp_path, FIRST)[0], NAME)


def test_who_commits_at_the_same_time_loses_nothing(hub: Hub, tmp_path: Path) -> None:
    def once(repository: Repository) -> None:
        hub.before_commit = lambda _: None
        repository.commits.append({**repository.at("main"), "theirs": b"x"})

    hub.before_commit = once
    make, given = _making(tmp_path, FIRST)
    assert push(make, NAME)[1]
    assert len(given) == 2
    assert _board(hub.repositories["dataset", NAME]) == FIRST | {"theirs": b"x"}


def test_a_repository_that_moves_again_and_again_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    hub.before_commit = lambda repository: repository.commits.append(repository.at("main"))
    with pytest.raises(UserError, match="others commit to it at the same time"):
        push(_making(tmp_path, FIRST)[0], NAME)
    assert _board(hub.repositories["dataset", NAME]) == {}


@pytest.mark.parametrize(
    ("method", "part", "status", "said"),
    [
        ("POST", "/api/repos/create", 401, "does not accept the token: log in again"),
        ("POST", "/api/repos/create", 402, "asks for a paid plan"),
        ("POST", "/commit/", 403, "the token may not do this"),
        ("POST", "/commit/", 404, "knows no such user, organisation or repository"),
        ("POST", "/commit/", 413, "more than the Hub takes at once"),
        ("POST", "/commit/", 429, "too many requests for now: wait some minutes"),
        ("POST", "/commit/", 500, r"answered with an error \(500\): run it again later"),
        ("POST", "/info/lfs/", 403, "the token may not do this"),
        ("GET", "/api/datasets/", 503, r"answered with an error \(503\)"),
    ],
)
def test_refusals(hub: Hub, tmp_path: Path, method: str, part: str, status: int, said: str) -> None:
    hub.refuse[method, part] = status
    with pytest.raises(UserError, match=said) as refused:
        push(_making(tmp_path, FIRST)[0], NAME)
    assert f"no, says the hub: {status}" in str(refused.value)
    assert TOKEN not in str(refused.value)
    for made in hub.repositories.values():
        assert _board(made) == {}


def test_a_namespace_of_others_and_a_wrong_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"the token may not do this.*rights to create a repo"):
        push(_making(tmp_path, FIRST)[0], "others/board")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wRong" * 5)
    with pytest.raises(UserError, match="does not accept the token") as refused:
        push(_making(tmp_path, FIRST)[0], NAME)
    assert "wRong" not in str(refused.value)


def test_a_full_storage_is_told_and_a_fault_of_ours_is_not_the_hubs(hub: Hub, tmp_path: Path) -> None:
    hub.quota = 4000
    with pytest.raises(UserError, match=r"the Hub did not take the board: .*over your storage limit"):
        push(_making(tmp_path, FIRST)[0], NAME)
    assert _board(hub.repositories["dataset", NAME]) == {}

    def broken(earlier: Path | None) -> Path:
        raise FileNotFoundError(f"a fault after {earlier}")

    with pytest.raises(FileNotFoundError, match="a fault after None"):
        push(broken, NAME)


def test_no_token_no_network_no_answer(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, given = _making(tmp_path, FIRST)
    monkeypatch.setattr(_hub_push, "_WAIT_S", 1.0)
    hub.hang = "/commit/"
    with pytest.raises(UserError, match="did not answer in time, and whether it took the board in is not known"):
        push(make, NAME)
    hub.hang = ""
    assert len(given) == 1
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        push(make, NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="switched off here"):
        push(make, NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="there is no token for the Hub"):
        push(make, NAME)
    assert len(given) == 1
