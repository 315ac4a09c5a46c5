"""What runs came to, night after night: one SQLite file beside the runs, which outlives their directories.

Several rigs may use one file at the same time (write-ahead log; a writer waits for its turn).
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from rig.errors import EvidenceError, MachineError, RequestError
from rig.model import RunResult, Verdict
from rig.reading import require_regular
from rig.report.wording import headline, printable

FILE = "history.sqlite"
APPLICATION = int.from_bytes(b"rigH")  # SQLite's application_id: whose file it is
SCHEMA = 1
PATIENCE = 30.0  # seconds that a writer waits for another one

# Of each check the figures that say how good a run was, or how long it took.
FIGURES = {
    "pgd-survives": ("bytes_changed",),
    "memory-accounted": ("bytes_changed", "unaccounted"),
    "vmcore-faithful": ("fidelity", "kexec_cost_bytes", "unaccounted"),
    "image-copied": ("bytes_differing",),
    "crash-kernel-boots": ("seconds",),
}


@dataclass(frozen=True)
class Record:
    """One run, as far as its directory is not needed for it."""

    key: str  # sha256 of the result, see `key_of`
    id: str
    scenario: str
    guest: str
    kernel: str  # its name
    release: str
    sha256: str  # of the kernel's image; empty when the run never had one
    started: str  # UTC, ISO 8601
    verdict: Verdict
    expect: Verdict
    as_expected: bool
    why: str  # one sentence: what became of it, or why it is no pass
    seconds: float  # all phases
    figures: Mapping[str, float]  # by "CHECK.FIGURE"; only those that the checks gave
    directory: str  # as seen from the history's own directory; empty when it is not known any more


# ---------------------------------------------------------------- results into records (pure)


def key_of(result: RunResult) -> str:
    """sha256 of the canonical result: what it says, whatever the order and the blanks of its file.

    Fields at their default are left out: one that a later rig adds must not make an old result a new one.
    """
    as_read = msgspec.json.decode(msgspec.json.encode(result, enc_hook=str), type=RunResult)
    return hashlib.sha256(msgspec.json.encode(_canonical(as_read), order="sorted")).hexdigest()


def _canonical(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((field, getattr(value, field.name)) for field in fields(value))
        return {f.name: _canonical(v) for f, v in pairs if f.default is MISSING or v != f.default}
    return [_canonical(item) for item in value] if isinstance(value, tuple) else value


def record_of(result: RunResult, directory: str, moment: str = "") -> Record:
    """moment: when it was, for results of a rig that did not say."""
    return Record(
        key=key_of(result),
        id=result.id,
        scenario=result.scenario,
        guest=result.guest,
        kernel=result.kernel.name,
        release=result.kernel.release,
        sha256=result.kernel.sha256,
        started=result.started or moment,
        verdict=result.verdict,
        expect=result.expect,
        as_expected=result.as_expected,
        why=_why(result),
        seconds=round(sum(phase.seconds for phase in result.phases), 3),
        figures=_figures(result),
        directory=directory,
    )


def _figures(result: RunResult) -> dict[str, float]:
    found = {
        f"{check.name}.{name}": check.figures.get(name)
        for check in result.checks
        for name in FIGURES.get(check.name, ())
    }
    return {name: v for name, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _why(result: RunResult) -> str:
    failed = [f"{c.name}: {printable(c.summary)}" for c in result.checks if c.verdict in (Verdict.FAIL, Verdict.ERROR)]
    if result.verdict is Verdict.SKIP or result.error is not None:
        return headline(result)
    if result.expect is Verdict.FAIL and result.surprise:
        return printable(result.surprise)
    return "; ".join(failed) or headline(result)


# ---------------------------------------------------------------- the file

_CREATE = f"""
CREATE TABLE runs (
  key TEXT PRIMARY KEY, id TEXT NOT NULL, scenario TEXT NOT NULL, guest TEXT NOT NULL, kernel TEXT NOT NULL,
  release TEXT NOT NULL, sha256 TEXT NOT NULL, started TEXT NOT NULL, verdict TEXT NOT NULL, expect TEXT NOT NULL,
  as_expected INTEGER NOT NULL, why TEXT NOT NULL, seconds REAL NOT NULL, figures TEXT NOT NULL, directory TEXT NOT NULL
);
CREATE INDEX runs_by_id ON runs (id, started);
CREATE INDEX runs_by_directory ON runs (directory);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA};
"""
_FILES = ("", "-wal", "-shm", "-journal")  # what SQLite opens: https://www.sqlite.org/tempfiles.html
_COLUMNS = ", ".join(field.name for field in fields(Record))
_ADD = f"INSERT OR IGNORE INTO runs ({_COLUMNS}) VALUES ({', '.join('?' * len(fields(Record)))})"
_IN_ORDER = "ORDER BY started, rowid"


class History:
    """The records of one file, which is made when it isn't there. path None: in memory, for this process only.

    :raise RequestError: it was written by a newer rig
    :raise EvidenceError: it is damaged or not a history; it is left as it is
    :raise MachineError: it can't be read or written for now
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._home = None if path is None else path.parent.resolve()
        if path is not None:
            for suffix in _FILES:
                require_regular(path.with_name(path.name + suffix))
        if path is not None and not path.exists():
            _make(path)
        with self._understood():
            self._db = sqlite3.connect(":memory:" if path is None else path, timeout=PATIENCE)
            try:
                if path is None:
                    self._db.executescript(_CREATE)
                self._require_ours()
                self._db.execute("PRAGMA synchronous = NORMAL")
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._db.close()

    def _require_ours(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (schema,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION:
            raise sqlite3.DatabaseError("it is not a history of runs")
        if schema > SCHEMA:
            raise RequestError(
                f"{self.path} was written by a newer rig: its schema is {schema}, this rig knows {SCHEMA}",
                hint="use that rig, or another --results DIR",
            )
        if _shape(self._db) != _own_shape():
            raise sqlite3.DatabaseError("its tables are not those of a history of runs")

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """SQLite's errors as the rig's."""
        try:
            yield
        except sqlite3.OperationalError as problem:
            raise MachineError(
                f"the history {self.path} can't be used now: {problem}",
                hint="another rig holds it for long, or the directory can't be written or is full",
            ) from problem
        except (sqlite3.DatabaseError, msgspec.MsgspecError, ValueError) as problem:
            raise EvidenceError(
                f"the history {self.path} is damaged: {problem}",
                hint="move it away: a new one is made of the results that are there; `sqlite3 FILE .recover` may save "
                "records of deleted ones",
            ) from problem

    def add(self, result: RunResult, directory: Path) -> bool:
        """Keep what it came to, and where it lies now. False: it was there already, at most its place is new."""
        place = self._place(directory)
        record = record_of(result, place, "" if result.started else _written(directory / "result.json"))
        row = [getattr(record, field.name) for field in fields(Record)]
        row[_FIGURES_AT] = msgspec.json.encode(record.figures).decode()
        with self._understood(), self._db:
            added = self._db.execute(_ADD, row).rowcount == 1
            self._db.execute("UPDATE runs SET directory = '' WHERE directory = ? AND key <> ?", (place, record.key))
            self._db.execute(
                "UPDATE runs SET directory = ? WHERE key = ? AND directory <> ?", (place, record.key, place)
            )
        return added

    def take_over(self, other: History) -> int:
        """Add the records of another history, without their directories. Returns how many were new."""
        rows = other._rows("")
        with self._understood(), self._db:
            return sum(self._db.execute(_ADD, (*row[:-1], "")).rowcount for row in rows)

    def forget_directories(self) -> None:
        """The runs have all been moved; whoever did it adds them anew."""
        with self._understood(), self._db:
            self._db.execute("UPDATE runs SET directory = ''")

    def directories(self) -> set[str]:
        """Those of all records, as they stand in `Record.directory`."""
        with self._understood():
            return {row[0] for row in self._db.execute("SELECT DISTINCT directory FROM runs")} - {""}

    def of(self, id: str) -> list[Record]:
        """All runs of one cell, oldest first."""
        return [self._record(row) for row in self._rows("WHERE id = ?", id)]

    def records(self, pattern: str = "*") -> list[Record]:
        """All runs whose id, or scenario, matches the pattern (fnmatch), oldest first."""
        known = [self._record(row) for row in self._rows("")]
        return [one for one in known if any(fnmatch.fnmatchcase(name, pattern) for name in (one.id, one.scenario))]

    def _rows(self, where: str, *values: str) -> list[tuple[Any, ...]]:
        with self._understood():
            # where: a constant of the caller's
            query = f"SELECT {_COLUMNS} FROM runs {where} {_IN_ORDER}"  # nosec B608
            return self._db.execute(query, values).fetchall()

    def _record(self, row: tuple[Any, ...]) -> Record:
        with self._understood():
            names = (field.name for field in fields(Record))
            values = dict(zip(names, row, strict=True))
            figures = msgspec.json.decode(str(values["figures"]), type=dict[str, float])
            return msgspec.convert(values | {"figures": figures}, Record, strict=False)

    def _place(self, directory: Path) -> str:
        whole = directory.resolve()
        if self._home is not None and whole.is_relative_to(self._home):
            return whole.relative_to(self._home).as_posix()
        return str(whole)


def _shape(database: sqlite3.Connection) -> list[tuple[str, ...]]:
    """All that is in it but rows: tables and indices, and triggers and views, of which a history has none."""
    return database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()


@functools.cache
def _own_shape() -> list[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_CREATE)
        return _shape(database)


_FIGURES_AT = [field.name for field in fields(Record)].index("figures")


def _make(path: Path) -> None:
    """A new file, whole from the start, unless another rig makes one at the same time: then that one is it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{FILE}.", dir=path.parent) as folder:
            draft = Path(folder) / FILE
            with contextlib.closing(sqlite3.connect(draft)) as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.executescript(_CREATE)
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
    except (OSError, sqlite3.Error) as problem:
        raise MachineError(f"the history {path} can't be made: {problem}", hint="choose --results DIR") from problem


def _written(path: Path) -> str:
    """When a file was written, UTC, ISO 8601 to the second; empty when it isn't there."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except OSError:
        return ""
