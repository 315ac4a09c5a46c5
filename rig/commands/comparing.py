"""The command that holds two runs, or two directories of runs, against each other: compare."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rig.commands.common import print_json
from rig.errors import RequestError

if TYPE_CHECKING:
    from rig.report.compare import Comparison

EXIT_CODES = """\
exit codes:
  0    no verdict got worse
  1    the verdict of a run, or of a check, got worse
  2    the request is wrong
  3    a run of either side could not be judged
"""


def add_options(sub: argparse.ArgumentParser) -> None:
    for name in ("before", "after"):
        text = "a run, or a directory of runs: then those with the same id are compared"
        sub.add_argument(name, type=Path, metavar="RESULT_DIR", help=text)
    sub.add_argument("--html", type=Path, metavar="FILE", help="write a page with everything, too")


def compare(args: argparse.Namespace) -> int:
    from rig.report.compare import exit_code

    pairs, unmatched = pair_up(args.before, args.after)
    comparisons = [_compare(before, after) for before, after in pairs]
    if args.html is not None:
        _write_page(args.html, comparisons, unmatched)
    if args.json:
        only = dict(zip(("only_before", "only_after"), unmatched, strict=True))
        print_json({"comparisons": comparisons, **only, "html": args.html})
    else:
        _show(comparisons, unmatched, alone=_is_run(args.before) or _is_run(args.after))
    return exit_code(comparisons)


def pair_up(before: Path, after: Path) -> tuple[list[tuple[Path, Path]], tuple[list[str], list[str]]]:
    """The runs to compare, and the ids of those that only one side has.

    Two runs are compared whatever they are. Otherwise by id: of each the one that began last.
    """
    if _is_run(before) and _is_run(after):
        return [(before, after)], ([], [])
    old, new = _latest(before), _latest(after)
    common = sorted(old.keys() & new.keys())
    if not common:
        raise RequestError(
            f"{before} and {after} have no run in common",
            hint=f"there are: {', '.join(sorted(old))}; and {', '.join(sorted(new))}",
        )
    if _is_run(before) or _is_run(after):
        return [(old[name], new[name]) for name in common], ([], [])
    return [(old[name], new[name]) for name in common], (
        sorted(old.keys() - new.keys()),
        sorted(new.keys() - old.keys()),
    )


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def _latest(path: Path) -> Mapping[str, Path]:
    """The run of each id that began last, of a run itself or of a directory of runs; when equal the higher number."""
    from rig.evidence import Evidence

    runs = [path] if _is_run(path) else sorted((run.parent for run in path.glob("[!.]*/run.json")), key=_number)
    if not runs:
        raise RequestError(f"{path} is no run, and has none in it", hint="give a directory that rig has written")
    results = [(Evidence(run).result, run) for run in runs]
    return {result.id: run for result, run in sorted(results, key=lambda one: one[0].started)}


def _number(run: Path) -> tuple[str, int]:
    """A second run of an id is called SLUG.2."""
    slug, _, number = run.name.rpartition(".")
    return (slug, int(number)) if number.isdigit() and slug else (run.name, 1)


def _compare(before: Path, after: Path) -> Comparison:
    from rig.errors import EvidenceError
    from rig.evidence import Evidence
    from rig.handover import HandOver
    from rig.report.compare import compare as side_by_side
    from rig.report.tracediff import compare_ways, way

    old, new = Evidence(before), Evidence(after)
    ways = []
    for side, word in ((old, "before"), (new, "after")):
        try:
            ways.append(way(HandOver(side)))
        except EvidenceError as problem:
            return side_by_side(old.result, new.result, None, f"{word}: {problem.message}")
    return side_by_side(old.result, new.result, compare_ways(*ways))


def _write_page(
    target: Path, comparisons: Sequence[Comparison], unmatched: tuple[Sequence[str], Sequence[str]]
) -> None:
    from rig.report.html.compare import render_comparisons

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render_comparisons(comparisons, unmatched), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{target} can't be written: {error.strerror}", hint="name another file") from error


def _show(comparisons: Sequence[Comparison], unmatched: tuple[Sequence[str], Sequence[str]], *, alone: bool) -> None:
    from rich.console import Console

    from rig.report.compare_text import many_text, one_text

    console = Console(highlight=False)  # styles only where the terminal has them
    text = one_text(comparisons[0]) if alone else many_text(comparisons, unmatched)
    console.print(text, soft_wrap=True)
