"""The command that holds two runs, or two directories of runs, against each other: compare."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rig.commands.common import print_json, tell
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
    text = "the evidence of a run, or a directory of many: of these, runs with the same id are compared"
    sub.add_argument("before", type=Path, metavar="BEFORE", help=text)
    sub.add_argument("after", type=Path, metavar="AFTER", help="the same, of the other side")
    sub.add_argument("--html", type=Path, metavar="FILE", help="also write a page, with all that differs")


def compare(args: argparse.Namespace) -> int:
    from rig.reading import over_evidence
    from rig.report.compare import exit_code
    from rig.report.directories import is_run

    pairs, unmatched = pair_up(args.before, args.after)
    comparisons = []
    for before, after in pairs:
        with over_evidence(after):
            comparisons.append(_compare(before, after))
    if args.html is not None:
        _write_page(args.html, comparisons, unmatched)
    if args.json:
        only = dict(zip(("only_before", "only_after"), unmatched, strict=True))
        print_json({"comparisons": comparisons, **only, "html": args.html})
    else:
        _show(comparisons, unmatched, alone=is_run(args.before) or is_run(args.after))
    return exit_code(comparisons)


def pair_up(before: Path, after: Path) -> tuple[list[tuple[Path, Path]], tuple[list[str], list[str]]]:
    """The runs to compare, and the ids of those that only one side has.

    Two runs are compared whatever they are. Otherwise by id: of each the one that began last.
    """
    from rig.report.directories import is_run

    if is_run(before) and is_run(after):
        return [(before, after)], ([], [])
    old, new = _latest(before), _latest(after)
    common = sorted(old.keys() & new.keys())
    if not common:
        raise RequestError(
            f"{before} and {after} have no run in common",
            hint=f"there are: {', '.join(sorted(old))}; and {', '.join(sorted(new))}",
        )
    if is_run(before) or is_run(after):
        return [(old[name], new[name]) for name in common], ([], [])
    return [(old[name], new[name]) for name in common], (
        sorted(old.keys() - new.keys()),
        sorted(new.keys() - old.keys()),
    )


def _latest(given: Path) -> Mapping[str, Path]:
    """The latest run of each id, of a run itself or of a directory of runs."""
    from rig.report.directories import latest, runs_in

    return {result.id: run for result, run in latest(runs_in(given), tell)}


def _compare(before: Path, after: Path) -> Comparison:
    from rig.errors import EvidenceError
    from rig.evidence.reader import Evidence
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
    from rig.report.compare_text import many_text, one_text
    from rig.screen import Screen

    text = one_text(comparisons[0]) if alone else many_text(comparisons, unmatched)
    Screen(highlight=False).print(text, soft_wrap=True)
