"""`harness sql`: any question, no change, no other file."""

import io
import json
from pathlib import Path

import polars as pl
import pytest

from harness.errors import UserError
from harness.store import VIEWS, Store, format_rows, run_sql
from tests.store.scenario import build_scenario


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build_scenario(tmp_path_factory.mktemp("scenario"))


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO raw.ledger VALUES ('x')",
        "DELETE FROM raw.samples",
        "DROP VIEW scores",
        "CREATE TEMP TABLE t (a INT)",
        "COPY (SELECT 1) TO 'out.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'out.csv'",
        "EXPLAIN ANALYZE DELETE FROM raw.samples",
        "EXPORT DATABASE 'out'",
        "ATTACH 'other.duckdb'",
        "ATTACH ':memory:' AS m",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "PRAGMA threads = 1",
        "SELECT * FROM read_csv('secret.csv')",
        "SELECT * FROM 'secret.csv'",
        "SELECT * FROM read_text('secret.csv')",
        "SELECT * FROM glob('*')",
        "SELECT * FROM frame",
        "SELECT 1; DELETE FROM raw.samples",
        "",
    ],
)
def test_what_is_no_question_to_the_store_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.csv").write_text("a\n1\n")
    frame = pl.DataFrame({"a": [1]})
    before = store.query("SELECT count(*) FROM raw.samples").item()
    with pytest.raises(UserError):
        run_sql(store.results, sql)
    assert store.query("SELECT count(*) FROM raw.samples").item() == before
    assert [p.name for p in tmp_path.iterdir()] == ["secret.csv"]
    assert frame.height == 1


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM scores",
        "WITH s AS (FROM scores) SELECT count(*) FROM s",
        "FROM trials LIMIT 1",
        "SUMMARIZE scores",
        "SHOW TABLES",
        "DESCRIBE raw.samples",
        "EXPLAIN SELECT 1",
        "VALUES (1)",
    ],
)
def test_questions_are_answered(store: Store, sql: str) -> None:
    assert run_sql(store.results, sql)


def test_a_bad_query_says_what_duckdb_says(store: Store) -> None:
    with pytest.raises(UserError, match="scoress") as caught:
        run_sql(store.results, "SELECT * FROM scoress")
    assert "Did you mean" in str(caught.value)
    with pytest.raises(UserError, match="syntax error"):
        run_sql(store.results, "SELEC 1")


def test_with_nothing_measured_it_tells_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="harness sweep"):
        run_sql(tmp_path / "results", "FROM suites")
    assert not (tmp_path / "results").exists()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "harness.duckdb").write_text("x" * 5000)
    with pytest.raises(UserError, match=r"harness\.duckdb"):
        run_sql(tmp_path, "FROM suites")


@pytest.mark.parametrize("spelling", ["describe scores", "DESC main.Scores ;", 'Describe "scores"'])
def test_describe_tells_what_each_column_means(store: Store, spelling: str) -> None:
    rows = json.loads(run_sql(store.results, spelling, "json"))
    assert {r["column_name"]: r["description"] for r in rows} == VIEWS["scores"].columns
    assert VIEWS["scores"].columns["stderr"] in run_sql(store.results, spelling).decode()


def test_formats_carry_the_same_rows(store: Store) -> None:
    sql = "SELECT recipe, seed, value FROM scores WHERE metric = 'kl' ORDER BY ALL"
    wanted = store.query(sql)
    assert pl.read_csv(run_sql(store.results, sql, "csv")).equals(wanted)
    assert json.loads(run_sql(store.results, sql, "json")) == wanted.to_dicts()
    assert pl.read_parquet(io.BytesIO(run_sql(store.results, sql, "parquet"))).equals(wanted)
    with pytest.raises(UserError, match="table, csv, json, parquet"):
        format_rows(wanted, "xml")  # type: ignore[arg-type]  # what a user may type


def test_a_table_is_aligned_and_tame() -> None:
    frame = pl.DataFrame({"name": ["a", "\x1b[31mred\nnext"], "value": [0.5, None], "n": [1, 1000]})
    lines = format_rows(frame, "table").decode().splitlines()
    assert lines[0] == "name           value     n"
    assert lines[2] == "a                0.5     1"
    assert "\x1b" not in "".join(lines)
    assert lines[3] == " [31mred␤next         1000"
    assert lines[-1] == "(2 rows)"
    long = format_rows(pl.DataFrame({"a": ["x" * 200]}), "table").decode()
    assert "x" * 59 + "…" in long
    assert "x" * 60 not in long
