"""The store of one results folder: `shards/` is the truth, `harness.duckdb` is made from it."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness._disk import writing
from harness.errors import UserError
from harness.store._connection import connect, writer_lock
from harness.store._ingest import alone, create, damage, fingerprint, ingest, recorded_fingerprint
from harness.store._listing import Listing, batch_names
from harness.store._repair import repair_shards
from harness.store._shards import Rows, remove_stale, write

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from harness.store._query import Reader

__all__ = ["Store"]

_MANY = 200
"""Batches that are left to a later ingest at most: the database is to follow the sweep within half a hundred trials."""


class Store:
    """Everything ever measured under one results folder.

    Any number of processes may `append` at any time; `ingest` is called by whoever wants to read what was appended.
    The database file is held open for milliseconds only, so that a report can be made while a sweep runs.
    """

    def __init__(self, results: Path) -> None:
        """`results` is made when the first row is written."""
        self.results = Path(results)
        self.shards = self.results / "shards"
        self.database = self.results / "harness.duckdb"
        self._reader: Reader | None = None
        self._listing = Listing(self.shards)
        self._seen: set[str] = set()
        self._left: tuple[int, ...] | None = None
        """The batches that were in the database, and that file, when `ingest` was last done with it."""
        self._asked: set[str] = set()
        self._memory: duckdb.DuckDBPyConnection | None = None
        """The batches that `newest` has asked already, and where."""

    def append(self, table: str, rows: "Rows | pl.DataFrame") -> None:
        """Write the rows of one table as one shard; they are durable when this returns. No rows, no shard.

        Raises:
            UserError: an unknown table or column, a missing one, a wrong type, a NaN where none may be.
        """
        self.append_many({table: rows})

    def append_many(self, tables: "Mapping[str, Rows | pl.DataFrame]") -> None:
        """Write the rows of several tables, visible all at once or, if this process dies before, not at all.

        Rows that belong to one content key (`Table.owner`: a measurement's samples, a stage's row) go in one call: when
        two batches bring the same key, the earliest batch counts.

        Raises:
            UserError: as for `append`; nothing is written then.
            StorageError: the disk refuses; nothing is left of the rows then.
        """
        write(self.shards, tables)

    def ingest(self) -> int:
        """Bring the database up to date with the shards; returns the number of batches taken in.

        Makes the database where there is none, and makes it anew where another version of this code made it.

        Raises:
            UserError: damaged or foreign shards, each named, after everything else was ingested; or the database stayed
                locked, or cannot be read.
            StorageError: the disk refuses; the database is as it was, and the shards are untouched.
        """
        with self._ingesting() as (taken, _):
            return taken

    @contextlib.contextmanager
    def _ingesting(self) -> "Iterator[tuple[int, duckdb.DuckDBPyConnection | None]]":
        """Ingest; within the block the database is still open, unless there was no need to open it."""
        if self._reader is not None and (open_for_writing := self._reader.given) is not None:
            if open_for_writing is self._memory:
                raise RuntimeError("within Store.newest only some rows are there: ingest before it, or use Store.fresh")
            yield self._take(open_for_writing), open_for_writing
            return
        if self._reader is not None:
            self._reader.close()
        if self._seen.issuperset(self._listing.names()) and self._unchanged():
            yield 0, None
            return
        with writer_lock(self._lock):
            if not self._unchanged():
                self._seen = set()
                remove_stale(self.shards)
            with connect(self.database, write=True) as connection:
                found = recorded_fingerprint(connection)
                if found is None:
                    create(connection)
                if current := found in (None, fingerprint()):
                    yield self._take(connection), connection
            if current:
                self._left = _mark(self.database)
                return
            taken = self._rebuild(keep_old=True)
        yield taken, None

    def _take(self, connection: "duckdb.DuckDBPyConnection") -> int:
        there = self._listing.names()
        taken, problems = ingest(connection, self.shards, [name for name in there if name not in self._seen])
        if problems:
            raise damage(problems)
        self._seen.update(there)
        return taken

    def _unchanged(self) -> bool:
        """Whether nobody has touched the database since `ingest` last left it."""
        return self._left is not None and self._left == _mark(self.database)

    def rebuild(self) -> int:
        """Make the database anew from the shards alone, aside, and put it in the old one's place.

        Returns the number of batches. Readers see the old content until the new is complete.

        Raises:
            UserError: as for `ingest`; the sound shards are in the new database then.
            StorageError: the disk refuses; the old database stays.
        """
        with writer_lock(self._lock):
            return self._rebuild()

    def repair(self) -> list[str]:
        """See to damaged shards, so that everything can go on, and make the database anew.

        Rows of a damaged or missing shard are written again from the database where it has them. Else they are lost:
        what is left of the shard is set aside, and the sweep computes again what it does not find. A line for each.

        Raises:
            UserError: entries that the store did not write, each named; the database is made all the same.
            StorageError: the disk refuses; run it again once that has ended.
        """
        with writer_lock(self._lock):
            said = repair_shards(self.database, self.shards)
            self._rebuild()
        return said

    @property
    def _lock(self) -> Path:
        return self.results / ".harness.lock"

    def _rebuild(self, *, keep_old: bool = False) -> int:
        if self.database.is_dir():
            raise UserError(f"{self.database} is a folder: move it away and run this again")
        aside = self.results / ".harness.rebuild.duckdb"
        with writing(self.results):
            self._remove(aside)
            try:
                with connect(aside, write=True) as connection:
                    create(connection)
                    taken, problems = ingest(connection, self.shards, batch_names(self.shards))
                if problems and keep_old:
                    # It may be the last to have the rows of these: `repair` takes them from it.
                    raise damage(problems, "the database was left as it is")
                # The old log first: left beside the new file, DuckDB would replay it there. What the old file loses
                # with it if we die between the two lines, the next ingest brings back from the shards.
                _wal(self.database).unlink(missing_ok=True)
                aside.replace(self.database)
            finally:
                self._remove(aside)
        if problems:
            raise damage(problems)
        return taken

    @staticmethod
    def _remove(database: Path) -> None:
        database.unlink(missing_ok=True)
        _wal(database).unlink(missing_ok=True)

    def query(
        self, sql: str, params: Sequence[object] | Mapping[str, object] | None = None, *, wait: float | None = None
    ) -> "pl.DataFrame":
        """Answer one read-only query; `?` or `$name` in it are filled from `params`.

        Raises:
            UserError: nothing was ingested yet, DuckDB refuses the query (with its message), or the file stayed locked
                for `wait` seconds.
        """
        from harness.store._query import answer

        if self._reader is not None:
            return self._reader.answer(sql, params)
        return answer(self.database, sql, params, wait=wait)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Within the block, queries of this store share one opening of the database, which takes longer than most.

        Writers get their turn: it is opened anew twice a second. Other threads of this process wait meanwhile.
        """
        from harness.store._query import Reader

        with self._read_by(self._reader or Reader(self.database, lock=self._lock)):
            yield

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Ingest, then answer the queries of the block on the same opening of the database: for short blocks.

        What is written within the block is taken in by another `ingest` there.

        Raises:
            UserError: as for `ingest`.
            StorageError: as for `ingest`.
        """
        from harness.store._query import Reader

        with self._ingesting() as (_, connection), self._read_by(Reader(self.database, connection)):
            yield

    @contextlib.contextmanager
    def newest(self, measurements: Collection[str]) -> Iterator[None]:
        """Answer the queries of the block, which are for these measurements and of the schema `raw` only.

        Where the batches that were not taken in yet hold all of them, those batches alone are asked, in memory: that
        takes a third of the time. Else, and where they are many, as `fresh`.

        Raises:
            UserError: as for `ingest`.
            StorageError: as for `ingest`.
        """
        from harness.store._query import Reader

        unseen = [name for name in self._listing.names() if name not in self._seen]
        if self._left is None or len(unseen) > _MANY:
            with self.fresh():
                yield
            return
        with contextlib.ExitStack() as stack:
            new = [name for name in unseen if name not in self._asked]
            connection = stack.enter_context(alone(self._in_memory(), self.shards, new))
            held = connection.execute("SELECT measurement, batch FROM raw.measurements").fetchall()
            # What holds others' measurements is asked again when they are.
            self._asked.update(set(new) - {batch for key, batch in held if key not in measurements})
            if {key for key, _ in held}.issuperset(measurements):
                stack.enter_context(self._read_by(Reader(self.database, connection)))
            else:
                stack.close()
                stack.enter_context(self.fresh())
            yield

    def _in_memory(self) -> "duckdb.DuckDBPyConnection":
        import duckdb

        if self._memory is None:
            self._memory = duckdb.connect(config={"python_enable_replacements": False})
        return self._memory

    @contextlib.contextmanager
    def _read_by(self, reader: "Reader") -> Iterator[None]:
        before, self._reader = self._reader, reader
        try:
            yield
        finally:
            if reader is not before:
                reader.close()
            self._reader = before

    def ready(self) -> bool:
        """Whether there is a database to ask."""
        return self.database.is_file()


def _mark(database: Path) -> tuple[int, ...] | None:
    try:
        found = database.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _wal(database: Path) -> Path:
    return database.with_name(database.name + ".wal")
