"""The page as text: whole, safe, and honest about what is missing."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import polars as pl
import pytest

from harness.errors import UserError
from harness.report import write_report
from harness.report._document import own_scripts
from harness.report._html import Table, json_script, number, table, tag
from harness.report._plot import Point, Series, checked, scatter
from harness.report._queries import read_facts
from harness.report._sensitivity import importances
from harness.store import Store
from tests.report.stores import Change, derive, keep, nothing
from tests.store.scenario import SCRIPT, SWEEP

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\u2028'\"&amp;\x00\x1b[31m\ud800"
PLOTLY_SHA256 = "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
"""Of plotly-cartesian.min.js as published: npm's plotly.js-cartesian-dist-min 4.1.1."""


class _Reader(HTMLParser):
    """Elements with their attributes, scripts with their text, and the text of everything else."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.cdata_elem == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.cdata_elem is None:
            self.said.append(data)

    def data(self, identifier: str) -> object:
        return json.loads(next(text for a, text in self.scripts if a.get("id") == identifier))

    def all(self, name: str) -> Iterator[dict[str, str | None]]:
        return (a for n, a in self.elements if n == name)


@pytest.fixture(scope="module")
def read(page: Path) -> _Reader:
    return _Reader(page.read_text(encoding="utf-8"))


def test_is_named_after_the_suite_and_replaced_as_a_whole(store: Store, page: Path, tmp_path: Path) -> None:
    assert page.name == "dpo_vs_ppo.html"
    again = write_report(store, SWEEP, tmp_path / "own.html")
    assert again == tmp_path / "own.html"
    assert [p.name for p in tmp_path.iterdir()] == ["own.html"]


def test_an_unwritable_place_is_a_user_error(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(store, SWEEP, tmp_path / "file")


def test_asks_for_nothing_from_outside(read: _Reader) -> None:
    for name, attributes in read.elements:
        assert name not in ("link", "iframe", "object", "embed", "base", "form", "img")
        assert attributes.get("src") is None
        assert (attributes.get("href") or "#").startswith("#")
        assert not [a for a in attributes if a.startswith("on")]
    style = files("harness.report").joinpath("style.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_policy_allows_the_scripts_of_the_page_and_nothing_else(read: _Reader) -> None:
    policy = next(a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    runs = [text for a, text in read.scripts if a.get("type") != "application/json"]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in runs]
    assert runs == own_scripts()
    assert f"script-src {' '.join(hashes)};" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy


def test_plotly_is_the_published_file_with_its_licence(page: Path) -> None:
    room = files("harness.report")
    assert hashlib.sha256(room.joinpath("plotly-cartesian.min.js").read_bytes()).hexdigest() == PLOTLY_SHA256
    licence = room.joinpath("plotly-cartesian.LICENSE.txt").read_text(encoding="utf-8").strip()
    assert licence.startswith("MIT License")
    assert licence in page.read_text(encoding="utf-8")
    assert page.stat().st_size < 2_500_000


def test_plotly_matches_the_library_that_checks_the_figures() -> None:
    # plotly.py checks a figure against the schema of its own plotly.js: another major version may draw it otherwise.
    own = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()[:300]
    vendored = files("harness.report").joinpath("plotly-cartesian.min.js").read_bytes()[:300]
    major = re.compile(rb"v(\d+)\.")
    assert major.findall(own)[0] == major.findall(vendored)[0]


def test_cloud_button_and_logo_are_off_and_no_script_writes_markup() -> None:
    scripts = own_scripts()[1:]
    assert any("showSendToCloud: false" in s and "displaylogo: false" in s for s in scripts)
    assert not re.findall("innerHTML|outerHTML|insertAdjacent|document.write", "".join(scripts))


def test_every_figure_has_caption_and_numbers(page: Path, read: _Reader) -> None:
    figures = re.findall(r"<figure>(.*?)</figure>", page.read_text(encoding="utf-8"), re.DOTALL)
    drawn = read.data("figure-data")
    assert isinstance(drawn, dict)
    names = {"frontier", "overoptimisation", "benchmarks", "ratings", "training", "search"}
    names |= {"tradeoffs", "variants", "profiles", "forest", "budget-curves"}
    assert set(drawn) == names
    assert len(figures) == len(names)
    for figure in figures:
        assert re.search(r"<figcaption>[^<]{40,}", figure)
        assert figure.count("<tr>") > 2
    for variants in drawn.values():
        for variant in variants:
            assert variant["data"]
            assert all(trace["x"] and len(trace["x"]) == len(trace["y"]) for trace in variant["data"])


def test_numbers_of_a_figure_are_those_drawn(page: Path, read: _Reader) -> None:
    drawn = read.data("figure-data")
    assert isinstance(drawn, dict)
    figure = next(f for f in re.findall(r"<figure>.*?</figure>", page.read_text(), re.DOTALL) if 'id="benchmarks"' in f)
    cells = re.findall(r'<td class="num">([^<]*)</td>', figure)
    for trace in drawn["benchmarks"][0]["data"]:
        for value in trace["y"]:
            assert number(value) in cells


def test_recipe_table_has_every_figure(read: _Reader) -> None:
    said = set(read.said)
    for row in ("gold reward", "KL, nats", "mmlu, acc", "hellaswag, acc_norm", "judge: helpfulness", "latency, ms"):
        assert row in said
    assert "3 complete, 1 infeasible" in said
    assert "trial 1: dpo.beta 0.1, dpo.learning_rate 5e-05" in said


def test_provenance_has_suite_machine_stages_and_tracebacks(read: _Reader) -> None:
    said = "\n".join(read.said)
    for part in ("name: dpo_vs_ppo", "machine cpu", "git revision", "bundled sets (not the official benchmarks)"):
        assert part in said
    assert "RuntimeError: the loss has no gradient" in said
    assert "reward_model v1" in said


def test_script_of_a_response_is_data(page: Path, read: _Reader) -> None:
    text = page.read_text(encoding="utf-8")
    assert SCRIPT not in text
    assert "alert(1)" in json.dumps(read.data("sample-data"))
    assert "alert(1)" in json.dumps(read.data("verdict-data"))
    assert len(read.scripts) == len(own_scripts()) + 3


def _hostile(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    # The lone surrogate cannot be stored (Parquet is UTF-8); json_script and write_report meet it in other tests.
    return frame.with_columns(pl.lit(HOSTILE[:-1]).alias(c) for c in columns)


@pytest.fixture(scope="module")
def hostile(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a store in which every free text is an attack, and a recipe's name too."""
    name = '<b onmouseover="alert(1)">%{x}$\\alpha$</b></script><script>alert(2)</script>'

    def renamed(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col("recipe").replace("ppo", name))

    tables = ("trial_events", "stage_links", "measurement_links")
    changes: dict[str, Change] = dict.fromkeys(tables, renamed)
    changes["failure_events"] = lambda f: _hostile(renamed(f), "message", "traceback")
    changes["samples"] = lambda f: _hostile(f, "response", "expected", "prompt")
    changes["judge_votes"] = lambda f: _hostile(f, "response", "prompt", "judge_prompt", "verdict")
    changes["pair_votes"] = lambda f: _hostile(f, "response_a", "response_b", "prompt", "judge", "words", "category")
    changes["judge_checks"] = lambda f: _hostile(f, "judge", "attack", "prompt", "response", "words")
    changes["sweep_events"] = lambda f: _hostile(f, "question", "yaml", "data")
    folder = tmp_path_factory.mktemp("hostile")
    return write_report(derive(store, folder / "results", changes), SWEEP, folder)


def test_hostile_text_stays_text(hostile: Path, page: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    read, plain = _Reader(text), _Reader(page.read_text(encoding="utf-8"))
    assert len(read.scripts) == len(plain.scripts)
    assert {n for n, _ in read.elements} == {n for n, _ in plain.elements}
    assert not [a for _, attributes in read.elements for a in attributes if a.startswith("on")]
    assert "\x00" not in text
    assert "\x1b" not in text
    assert "<!--" not in text
    samples = read.data("sample-data")
    assert isinstance(samples, dict)
    assert samples["texts"][samples["tasks"][0]["documents"][0]["prompt"]] == HOSTILE[:-1]


def test_json_in_the_page_survives_anything() -> None:
    text = json_script("data", {"text": HOSTILE})
    body = text.removeprefix('<script type="application/json" id="data">').removesuffix("</script>")
    assert not set("<>&\u2028") & set(body)
    assert body.isascii()
    assert json.loads(body) == {"text": HOSTILE}
    with pytest.raises(ValueError, match="JSON compliant"):
        json_script("data", float("nan"))


def test_markup_escapes_what_is_not_markup() -> None:
    assert tag("p", "<b>", tag("i", "&"), title='"') == '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert '<td class="num">0.500</td>' in table(Table(["a"], [[0.5]]))
    assert "<td>&lt;i&gt;</td>" in table(Table(["a"], [["<i>"]]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (-0.08123, "−0.081"),
        (0.00084, "0.0008"),
        (2e-5, "2.0e−05"),
        (11.052, "11.05"),
        (123.456, "123.5"),
        (1234567.0, "1,234,567"),
        (None, "–"),
        (float("nan"), "unknown"),
    ],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number(value) == text


def test_plotly_refuses_what_it_does_not_know() -> None:
    good = scatter([Series("a", 1, [Point(1.0, 2.0, ["a"])])], "x", "y")
    assert checked(good)["data"]
    with pytest.raises(ValueError, match="no_such_option"):
        checked(scatter([Series("a", 1, [Point(1.0, 2.0, ["a"])])], "x", "y", no_such_option=1))


_FINAL, _TUNE = pl.col("phase") == "final", pl.col("phase") == "tune"
_BASE = pl.col("recipe") == "base"
_STATES: dict[str, dict[str, Change]] = {
    "only base": {
        "trial_events": keep(_BASE),
        "measurement_links": keep(_BASE),
        "stage_links": nothing,
        "stages": nothing,
        "failure_events": nothing,
    },
    "only tuning": {"trial_events": keep(_TUNE), "measurement_links": keep(_TUNE)},
    "nothing finished": {
        "trial_events": keep(pl.col("state") == "running"),
        "measurement_links": nothing,
        "stages": nothing,
        "failure_events": nothing,
    },
    "nothing begun": dict.fromkeys(
        ("trial_events", "measurement_links", "stage_links", "stages", "failure_events", "environment_rows"), nothing
    ),
    "all failed": {
        "trial_events": lambda f: f.filter(~_BASE).with_columns(
            pl.when(pl.col("state") == "complete").then(pl.lit("failed")).otherwise(pl.col("state")).alias("state"),
            pl.lit(None, pl.String).alias("objectives"),
        ),
        "measurement_links": nothing,
    },
    "one document": {"samples": keep(pl.col("document") == pl.col("document").min().over("measurement"))},
    "no texts": {
        "samples": lambda f: f.with_columns(
            pl.lit(None, pl.String).alias(c) for c in ("response", "expected", "prompt")
        )
    },
    "diverged": {"training_steps": lambda f: f.with_columns(pl.lit(float("nan")).alias("value"))},
}


@pytest.fixture(scope="module", params=list(_STATES))
def partial(request: pytest.FixtureRequest, store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A report of an unfinished sweep, and which."""
    folder = tmp_path_factory.mktemp("partial")
    changes = {"sweep_events": keep(pl.col("state") == "running"), **_STATES[request.param]}
    return request.param, write_report(derive(store, folder / "results", changes), SWEEP, folder)


def test_an_unfinished_sweep_has_a_report(partial: tuple[str, Path]) -> None:
    state, path = partial
    said = "\n".join(_Reader(path.read_text(encoding="utf-8")).said)
    assert "still running" in said
    expected = {
        "only base": "No tuning trial has been started",
        "only tuning": "No recipe has final figures of gold reward yet",
        "nothing finished": "No stage has been computed yet",
        "nothing begun": "No run has begun yet",
        "all failed": "No tuning trial has finished with searched settings",
        "one document": "[unknown]",
        "no texts": "documents of the final half",
        "diverged": "No stage has logged a training step yet",
    }[state]
    assert expected in said


def test_parts_without_data_say_why(store: Store, tmp_path: Path) -> None:
    links = store.query("SELECT DISTINCT measurement FROM judgements UNION SELECT DISTINCT measurement FROM profiles")
    without = keep(~pl.col("measurement").is_in(links["measurement"].implode()))
    changes = {"measurement_links": without, "judge_votes": nothing, "profile_samples": nothing}
    path = write_report(derive(store, tmp_path / "results", changes), SWEEP, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "The suite&#x27;s measures name no judge, or no final run" in text
    assert "The suite&#x27;s measures name no profile, or no final run" in text
    drawn = _Reader(text).data("figure-data")
    assert isinstance(drawn, dict)
    assert not {"ratings", "tradeoffs", "variants", "profiles"} & set(drawn)


def test_importance_needs_four_finished_trials(store: Store, tmp_path: Path) -> None:
    assert "3 finished tuning trials; at least 4 are needed" in importances(read_facts(store, SWEEP))

    # More trials of dpo in which beta alone decides the objective.
    def more(frame: pl.DataFrame) -> pl.DataFrame:
        mine = (pl.col("recipe") == "dpo") & (pl.col("phase") == "tune") & (pl.col("state") == "complete")
        one = frame.filter(mine).row(0, named=True)
        rows = []
        for trial in range(16):
            beta, rate = 0.01 * 1.3**trial, 1e-5 * (1 + (trial * 7) % 16)
            settings = json.dumps({"dpo.beta": beta, "dpo.learning_rate": rate})
            rows.append(
                one | {"trial": trial, "settings": settings, "objectives": json.dumps({"gold_reward": trial / 16})}
            )
        added = pl.DataFrame(rows, schema=frame.schema)
        return pl.concat([frame.filter(~((pl.col("recipe") == "dpo") & (pl.col("phase") == "tune"))), added])

    html = importances(read_facts(derive(store, tmp_path / "results", {"trial_events": more}), SWEEP))
    shares = dict(re.findall(r"<td>(dpo\.\w+)</td><td>(\d+)%</td>", html))
    assert set(shares) == {"dpo.beta", "dpo.learning_rate"}
    assert int(shares["dpo.beta"]) > 80


def test_samples_are_capped_and_say_so(store: Store, tmp_path: Path) -> None:
    read = _Reader(write_report(store, SWEEP, tmp_path, samples=12).read_text(encoding="utf-8"))
    samples = read.data("sample-data")
    assert isinstance(samples, dict)
    assert [t["name"] for t in samples["tasks"]][:2] == ["gold", "judge"]
    assert sum(len(t["documents"]) for t in samples["tasks"]) == 12
    assert "12 of 212 documents of the final half" in " ".join(read.said)


def test_several_base_models_are_told_apart(store: Store, tmp_path: Path) -> None:
    def twice(frame: pl.DataFrame) -> pl.DataFrame:
        return pl.concat([frame, frame.with_columns(pl.lit("other/model").alias("model"))])

    changes = dict.fromkeys(("trial_events", "stage_links", "measurement_links"), twice)
    other = derive(store, tmp_path / "results", changes)
    facts = read_facts(other, SWEEP)
    # The suite's own model first, then one it does not name.
    expected = ["ppo · smollm2-135m-instruct", "ppo · other/model"]
    assert [c.label for c in facts.contenders if c.recipe == "ppo"] == expected
    assert len({c.index for c in facts.contenders}) == 6
    assert write_report(other, SWEEP, tmp_path).exists()


def test_says_which_models_were_scored_in_plain_batches(store: Store, page: Path, tmp_path: Path) -> None:
    assert "in plain batches" not in page.read_text(encoding="utf-8")
    settings = pl.lit(json.dumps({"scorer_fallback": "it has a <window>"})).alias("settings")
    changes: dict[str, Change] = {"measurements": lambda f: f.with_columns(settings)}
    other = write_report(derive(store, tmp_path / "results", changes), SWEEP, tmp_path)
    assert "scored in plain batches, since it has a &lt;window&gt;." in other.read_text(encoding="utf-8")
