"""Which runs there are in the directories that a command is given."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from rig.errors import EvidenceError, RequestError
from rig.evidence.reader import Evidence
from rig.history import FILE
from rig.model import RunResult
from rig.report.wording import printable

RUNS = "runs"  # of a site: where its runs are
MARK = "site.txt"  # a directory with this file is an earlier site

Tell = Callable[[str], None]


def is_run(directory: Path) -> bool:
    return (directory / "result.json").is_file() or (directory / "run.json").is_file()


def _is_inside(path: Path) -> bool:
    """Whether it is a run among many. One that a symbolic link leads to lies elsewhere: there nothing is to be read,
    and no page to be written, unless it is named itself."""
    return not path.name.startswith(".") and not path.is_symlink() and is_run(path)


def runs_in(given: Path, but: Container[str] = ()) -> list[Path]:
    """The directory itself when it is a run's, else the runs' directories in it, by name; of a site those in runs/.

    but: names of directories in it that are not looked into.

    :raise RequestError: neither
    """
    if is_run(given):
        return [given]
    inside = given / RUNS if (given / MARK).is_file() else given
    try:
        names = sorted(name for name in os.listdir(inside) if name not in but)
        found = [path for path in (inside / name for name in names) if _is_inside(path)]
    except OSError as problem:
        raise RequestError(
            f"{given} can't be read: {problem.strerror}", hint="give a directory below results/"
        ) from problem
    if not found and not (given / FILE).is_file():
        raise RequestError(
            f"{given} holds no runs: no result.json, here or one level down",
            hint="give results/, or a directory below it",
        )
    return found


def read_result(directory: Path, tell: Tell) -> RunResult | None:
    """None, and a word about it, when it can't be read: one torn file must not cost the whole report."""
    try:
        return Evidence(directory).result
    except EvidenceError as problem:
        tell(f"left out: {printable(problem.message)}")
        return None


def latest(runs: Iterable[Path], tell: Tell) -> list[tuple[RunResult, Path]]:
    """Of each id the run that began last, of those that began in the same second the one of the highest number; in the
    order in which the ids are met. What can't be read is told and left out."""
    found = [(result, run) for run in runs if (result := read_result(run, tell)) is not None]
    first = list(dict.fromkeys(result.id for result, _ in found))
    last = {
        result.id: (result, run) for result, run in sorted(found, key=lambda one: (one[0].started, _number(one[1])))
    }
    return [last[name] for name in first]


def _number(run: Path) -> int:
    """A second run of an id is called SLUG.2."""
    number = run.name.rpartition(".")[2]
    return int(number) if re.fullmatch(r"[0-9]{1,9}", number) else 1
