"""Pages over many runs, on disk: the index of a results directory, and a site that stands by itself.

A page is written under a temporary name and renamed, so several rigs may write the same one: the last is complete.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from rig.errors import EvidenceError, RequestError, RigError
from rig.evidence import VMCORE
from rig.evidence.reader import MOST_CONSOLE, Evidence
from rig.history import FILE, History, Record, key_of
from rig.judge import judge_dir
from rig.model import RunResult
from rig.reading import over_evidence, write_anew
from rig.report.directories import MARK, RUNS, Tell, read_result, runs_in
from rig.report.html import render_run
from rig.report.html.history import render_history
from rig.report.html.matrix import render_matrix
from rig.report.html.page import size_text
from rig.report.listing import hand_over_listing
from rig.report.wording import plural, printable

INDEX, HISTORY, PAGE = "index.html", "history.html", "report.html"
MARKED = "Written by `rig report --html`. The next one replaces index.html, history.html and runs/.\n"
RAM = ".ram.zst"  # how the names of whole memory images end

# ---------------------------------------------------------------- a results directory


def update(results: Path, finished: Iterable[tuple[RunResult, Path]], tell: Tell) -> None:
    """Keep what has just finished in the history of `results`, with what lies there unknown to it; write the index.

    :raise RigError: the history can't be used, or the pages can't be written
    """
    notes: list[str] = []
    with History(results / FILE) as history:
        for result, directory in finished:
            history.add(result, directory)
        _add_all(history, runs_in(results, history.directories()), _both(notes.append, tell))
        write_pages(results, history, notes)


def renew(results: Path, tell: Tell) -> list[Path]:
    """Write the index of a results directory anew, over all that lies there. Returns the pages.

    :raise RigError: as `update`
    """
    notes: list[str] = []
    with History(results / FILE) as history:
        _add_all(history, runs_in(results), _both(notes.append, tell))
        return write_pages(results, history, notes)


def of_results(results: Path, tell: Tell) -> History:
    """The history of a results directory, to be read: made up in memory when there is no file of it yet."""
    if (results / FILE).is_file():
        return History(results / FILE)
    history = History(None)
    _add_all(history, runs_in(results), tell)
    return history


def _add_all(history: History, directories: Iterable[Path], tell: Tell) -> None:
    for directory in directories:
        if (result := read_result(directory, tell)) is not None:
            history.add(result, directory)


def _both(one: Tell, other: Tell) -> Tell:
    def tell(text: str) -> None:
        one(text)
        other(text)

    return tell


def write_pages(root: Path, history: History, notes: Sequence[str] = ()) -> list[Path]:
    """index.html and history.html in `root`, over the records of its history."""
    records = history.records()

    def link(record: Record) -> str:
        """Looked up each time: directories are deleted."""
        there = record.directory and (root / record.directory / PAGE).is_file()
        return quote(f"{record.directory}/{PAGE}") if there else ""

    index, nights = render_matrix(records, link, notes), render_history(records, link)
    return [put(root / INDEX, index), put(root / HISTORY, nights)]


def put(target: Path, text: str) -> Path:
    """Write a file all at once.

    :raise RequestError: it can't be written
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_anew(target, text.encode())
    except OSError as problem:
        raise RequestError(
            f"{target} can't be written: {problem.strerror}", hint="make room, or choose another place with --html DIR"
        ) from problem
    return target


def write_page(directory: Path) -> Path:
    """The page of one run, beside its evidence, judged again."""
    return put(directory / PAGE, _page(judge_dir(directory), directory))


def _page(result: RunResult, directory: Path) -> str:
    evidence = Evidence(directory)
    with over_evidence(directory):
        return render_run(result, evidence, hand_over_listing(evidence))


# ---------------------------------------------------------------- a site


@dataclass
class Site:
    """What went into a site. left_out: bytes of whole memory images and dumps, by the run's name there."""

    runs: list[tuple[RunResult, Path]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build(target: Path, given: Sequence[Path], tell: Tell) -> list[Path]:
    """A site in `target` over all runs of the given directories, each run once however often it is there.

    Pages of runs are taken as they are; one that is missing, or links to what is left out, is rendered. The history
    goes on from that of an earlier site there, and takes over those of results directories. Returns the two pages.

    :raise RequestError: `target` is something else, or holds what is to be reported, or can't be written
    """
    _require_free(target, given)
    site = Site()
    note = _both(site.notes.append, tell)
    runs = [run for one in given for run in runs_in(one)]
    try:
        put(target / MARK, MARKED)
        with _replaced(target / RUNS) as draft:
            _copy_all(runs, draft, site, note)
        with History(target / FILE) as history:
            history.forget_directories()
            for directory in given:
                _take_over(history, directory / FILE, note)
            for result, place in site.runs:
                history.add(result, target / RUNS / place.name)
            if site.left_out:
                size = size_text(sum(site.left_out.values()))
                which = plural(len(site.left_out), "run", "runs")
                note(f"Whole memory images and whole dumps, {size} of {which}, are left out here.")
            return write_pages(target, history, site.notes)
    except OSError as problem:
        raise RequestError(f"{target} can't be written: {problem}", hint="choose another --html DIR") from problem


def _require_free(target: Path, given: Sequence[Path]) -> None:
    whole = target.resolve()
    if inside := [one for one in given if one.resolve().is_relative_to(whole)]:
        raise RequestError(
            f"{inside[0]} lies in {target}, which the site is to replace", hint="choose another place with --html DIR"
        )
    try:
        taken = target.exists() and not (target / MARK).is_file() and any(target.iterdir())
    except OSError as problem:
        raise RequestError(
            f"{target} is no directory that can be read: {problem.strerror}", hint="--html DIR"
        ) from problem
    if taken:
        raise RequestError(
            f"{target} is not empty, and not an earlier site: it has no {MARK}",
            hint="choose a new directory with --html DIR",
        )


def _take_over(history: History, path: Path, tell: Tell) -> None:
    if not path.is_file():
        return
    try:
        with History(path) as other:
            history.take_over(other)
    except RigError as problem:
        tell(printable(problem.message))


@contextlib.contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A new directory that takes the place of `target` when all went well."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        draft = Path(folder) / "new"
        draft.mkdir()
        yield draft
        if target.exists():
            target.rename(Path(folder) / "old")
        draft.rename(target)


def _copy_all(runs: Iterable[Path], folder: Path, site: Site, tell: Tell) -> None:
    seen = set()
    for run in runs:
        result = read_result(run, tell)
        if result is None or (key := key_of(result)) in seen:
            continue
        seen.add(key)
        place = folder / free_name(run.resolve().name, {path.name for _, path in site.runs})
        left_out = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink() and not _kept(path)]
        shutil.copytree(run, place, ignore=_unwanted)
        if left_out:
            site.left_out[place.name] = sum(path.lstat().st_size for path in left_out)
        if left_out or not (place / PAGE).is_file():
            _render_copy(result, place, tell)
        site.runs.append((result, place))


def free_name(name: str, taken: Container[str]) -> str:
    """The name, or the first of name.2, name.3... that is not taken: as a results directory does it."""
    if name not in taken:
        return name
    return next(free for number in itertools.count(2) if (free := f"{name}.{number}") not in taken)


def _unwanted(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if not _kept(Path(directory) / name)]


def _kept(path: Path) -> bool:
    """Whole images of memory are too big to publish, and so is what no report reads; a link could lead anywhere."""
    whole = path.name.endswith(RAM) or path.match(f"*/{VMCORE}") or path.lstat().st_size > MOST_CONSOLE
    return not path.is_symlink() and (path.is_dir() or (path.is_file() and not whole))


def _render_copy(result: RunResult, place: Path, tell: Tell) -> None:
    try:
        put(place / PAGE, _page(result, place))
    except EvidenceError as problem:
        tell(f"no page: {printable(problem.message)}")
