"""The site says what the report says, is whole, and holds nothing of the machine."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from harness.errors import UserError
from harness.publish import publish, verify
from harness.report._compare import estimate
from harness.report._html import number
from harness.report._queries import read_facts
from harness.store import Store
from tests.publish.conftest import NOW
from tests.report.stores import Change, derive, keep
from tests.report.test_page import HOSTILE
from tests.store.scenario import MODEL, SWEEP

TOKEN = "hf_" + "Zq9x" * 6
SECRETS = ("/home/marguerite", "marguerite", "gpu-box", TOKEN, "/opt/private", "D:\\private")


def _rows(export: Path) -> list[dict[str, object]]:
    return list(json.loads((export / "data/entries.json").read_text()))


def test_figures_are_those_of_the_report(store: Store, export: Path) -> None:
    facts = read_facts(store, SWEEP)
    checked = 0
    # What people say: test_people.py.
    for row in (r for r in _rows(export) if r["task"] != "people"):
        who = next(c for c in facts.contenders if c.recipe == row["recipe"])
        if row["task"] == "profile":
            metric, _, setting = str(row["metric"]).removesuffix(")").partition(" (")
            same = facts.profiles.filter(
                (pl.col("label") == who.label)
                & (pl.col("target") == row["target"])
                & (pl.col("metric") == metric)
                & (pl.col("setting") == setting)
            ).sort("seed")
            expected: object = same.select("value", "low", "high", "n").row(0)
        else:
            own = estimate(facts.on_target(str(row["target"])), who, str(row["task"]), str(row["metric"]))
            assert own is not None
            expected = (own.value, own.low, own.high, own.n)
        assert (row["value"], row["low"], row["high"], row["n"]) == pytest.approx(expected, rel=1e-12)
        checked += 1
    assert checked == 152


def test_ranks_differences_and_budget(store: Store, export: Path) -> None:
    rows = {(r["recipe"], r["target"], r["task"], r["metric"]): r for r in _rows(export)}
    assert len({r["entry"] for r in rows.values()}) == 6
    ppo, base = (rows[r, "cpu-fp32", "gold", "gold_reward"] for r in ("ppo", "base"))
    assert (ppo["rank"], ppo["ranked"], ppo["better"], ppo["seeds"]) == (1, 6, "higher", 2)
    assert ppo["difference"] == pytest.approx(float(str(ppo["value"])) - float(str(base["value"])))
    assert (base["seeds"], base["difference"], base["base"]) == (1, None, None)
    assert ppo["base"] == base["entry"]
    # Of the base model nothing is lower than its own KL of zero.
    kl = rows["base", "cpu-fp32", "gold", "kl"]
    assert (kl["rank"], kl["better"]) == (1, "lower")
    assert rows["ppo", "cpu-fp32", "gold", "length"]["rank"] is None
    # Four trials; sft once, reward model once a seed, and so on: each stage once, with all measurements and failures.
    assert ppo["trials"] == 4
    facts = read_facts(store, SWEEP)
    mine = facts.lineage.filter(pl.col("recipe") == "ppo").unique("stage")["seconds"].sum()
    measured = store.query(
        "SELECT count(DISTINCT measurement) FROM raw.measurement_links WHERE recipe = 'ppo'",
    ).item()
    assert ppo["device_seconds"] == pytest.approx(float(mine) + 9.0 * measured + 3.5)


def test_the_three_downloads_hold_the_same(export: Path) -> None:
    rows = pl.read_parquet(export / "data/entries.parquet")
    assert rows.to_dicts() == _rows(export)
    table = pl.read_csv(export / "data/entries.csv", schema=rows.schema)
    assert table.equals(rows)


class _Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.events: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [v or "" for k, v in attrs if k in ("href", "src")]
        self.events += [k for k, _ in attrs if k.startswith("on")]


def test_every_link_stays_inside_and_leads_somewhere(export: Path) -> None:
    for page in export.rglob("*.html"):
        read = _Links(page.read_text(encoding="utf-8"))
        assert not read.tags & {"link", "iframe", "object", "embed", "base", "form", "img"}
        for link in read.links:
            if link.startswith("#"):
                assert f'id="{link[1:]}"' in page.read_text()
            else:
                assert (page.parent / link).resolve().is_relative_to(export.resolve())
                assert (page.parent / link).is_file()


def test_entry_page_says_all(export: Path) -> None:
    key = next(str(r["entry"]) for r in _rows(export) if r["recipe"] == "ppo" and r["target"] == "cpu-fp32")
    text = html.unescape((export / f"entries/{key}.html").read_text(encoding="utf-8"))
    for said in ("harness sweep dpo_vs_ppo.yaml", f"models: [{MODEL}]", "ppo.kl_coef", "sft → reward_model → ppo"):
        assert said in text
    assert "reward is NaN at step 7" in text
    assert "machine cpu" in text
    value = next(r["value"] for r in _rows(export) if r["entry"] == key and r["metric"] == "gold_reward")
    assert number(float(str(value))) in text
    assert "<script>" not in (export / f"entries/{key}.html").read_text(encoding="utf-8")


def test_equal_input_gives_equal_bytes(store: Store, export: Path, tmp_path: Path) -> None:
    publish(store, [], tmp_path / "again", now=NOW)
    files = {p.relative_to(export): p.read_bytes() for p in export.rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*.*")}


def test_takes_no_place_that_is_not_its_own(store: Store, export: Path, tmp_path: Path) -> None:
    for name, content in (("notes", "x.txt"), ("mine", "manifest.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text("{}")
        with pytest.raises(UserError, match="not an earlier export"):
            publish(store, [SWEEP], tmp_path / name)
        assert [p.name for p in (tmp_path / name).iterdir()] == [content]
    site = tmp_path / "site"
    shutil.copytree(export, site)
    (site / "CNAME").write_text("board.example")
    with pytest.raises(UserError, match="CNAME"):
        publish(store, [SWEEP], site)
    (site / "CNAME").unlink()
    publish(store, [SWEEP], site, texts=False, now=NOW)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "notes", "site"]
    samples = pl.read_parquet(site / "data/samples.parquet")
    assert samples["response"].is_null().all()
    assert verify(site) == []
    with pytest.raises(UserError, match="no sweep or suite 'nope'"):
        publish(store, ["nope"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_nothing_to_publish_is_said(store: Store, tmp_path: Path) -> None:
    tuned = keep(pl.col("phase") == "tune")
    other = derive(store, tmp_path / "results", {"trial_events": tuned, "measurement_links": tuned})
    with pytest.raises(UserError, match="nothing to publish"):
        publish(other, [SWEEP], tmp_path / "site")


@pytest.fixture
def hostile(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The export of a store in which every free text names the machine, and attacks."""
    monkeypatch.setenv("USER", "marguerite")
    monkeypatch.setenv("LOGNAME", "marguerite")
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-box.lab.example")
    bad = (
        f'{HOSTILE[:-1]} "/home/marguerite/x y/z.py" file:///opt/private/q D:\\private\\w token={TOKEN} {TOKEN} '
        f"marguerite@gpu-box =HYPERLINK(1) {tmp_path}/results"
    )
    model = "/home/marguerite/my models/tiny"

    def texts(*columns: str) -> Change:
        return lambda f: f.with_columns(pl.lit(bad).alias(c) for c in columns)

    def local(frame: pl.DataFrame) -> pl.DataFrame:
        recipe = pl.when(pl.col("recipe") == "ppo").then(pl.lit(f"=ppo {bad}")).otherwise(pl.col("recipe"))
        return frame.with_columns(pl.lit(model).alias("model"), recipe.alias("recipe"))

    def failed(frame: pl.DataFrame) -> pl.DataFrame:
        return texts("message", "traceback", "command")(local(frame))

    environment = {"machine": {"cpu": f"c {bad}", "hostname": "gpu-box", "user": "marguerite"}, "x": ["/opt/private/y"]}
    changes: dict[str, Change] = dict.fromkeys(("trial_events", "stage_links", "measurement_links"), local)
    changes["failure_events"] = failed
    changes["samples"] = texts("response", "expected", "prompt")
    changes["judge_votes"] = texts("response", "prompt")
    changes["stages"] = lambda f: f.with_columns(
        pl.lit(json.dumps({"path": bad, "p": "/opt/private/p"})).alias("params"), pl.lit(bad).alias("dataset")
    )
    changes["environment_rows"] = lambda f: f.with_columns(pl.lit(json.dumps(environment)).alias("json"))
    changes["sweep_events"] = lambda f: f.with_columns(
        pl.lit(bad).alias("question"),
        pl.lit(f"models:\n  - {model}\n# {bad}\n").alias("yaml"),
        pl.lit(bad).alias("data"),
    )
    publish(derive(store, tmp_path / "results", changes), [SWEEP], tmp_path / "site", now=NOW)
    return tmp_path / "site"


def test_nothing_of_the_machine_is_published(hostile: Path, tmp_path: Path) -> None:
    texts = {}
    for path in (p for p in hostile.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        texts[path] = raw.decode("utf-8", "replace")
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
            texts[path] += "\n".join(t for c in frame.select(pl.col(pl.String)) for t in c.drop_nulls().unique())
    for path, text in texts.items():
        for form in (text, html.unescape(text), text.replace("\\\\", "\\")):
            for word in (*SECRETS, str(tmp_path), str(Path.cwd())):
                assert word not in form, (path.name, word)
    assert {p.suffix for p in texts} >= {".html", ".json", ".jsonl", ".md", ".csv", ".parquet"}
    page = next(p for p in texts if p.parent.name == "entries")
    assert "tiny" in texts[page]
    assert "not printed letter by letter" in texts[page]
    assert verify(hostile) == []


def test_hostile_text_stays_text(hostile: Path) -> None:
    for page in hostile.rglob("*.html"):
        read = _Links(page.read_text(encoding="utf-8"))
        assert not read.events
        assert not read.tags & {"img", "iframe", "b"}
    # No spreadsheet takes the recipe's name for a formula.
    cells = re.findall(r"(?:^|,)\"?(.?=ppo)", (hostile / "data/entries.csv").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(cells) == {"'=ppo"}


def test_a_user_called_like_a_word_can_publish(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "rank")
    publish(store, [SWEEP], tmp_path / "site", now=NOW)
    assert verify(tmp_path / "site") == []


def test_a_name_that_slips_through_stops_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "answer")
    monkeypatch.setattr("harness.publish._scrub.Scrubber.clean_all", lambda self, texts: list(texts))
    with pytest.raises(UserError, match=r"entry \w+ would hold the name of a user here"):
        publish(store, [SWEEP], tmp_path / "other")


def test_what_slips_through_stops_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.publish._scrub.Scrubber.clean_all", lambda self, texts: list(texts))
    changes: dict[str, Change] = {"samples": lambda f: f.with_columns(pl.lit(f"I am {TOKEN}").alias("response"))}
    other = derive(store, tmp_path / "results", changes)
    with pytest.raises(UserError, match=r"entries/\w+\.html would hold a secret|samples.parquet") as error:
        publish(other, [SWEEP], tmp_path / "site")
    assert TOKEN not in str(error.value)
    assert not (tmp_path / "site").exists()
