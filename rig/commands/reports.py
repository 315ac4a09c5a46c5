"""The commands that write reports from results: report, history."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rig.commands import exports
from rig.commands.common import print_json, tell
from rig.errors import RequestError, RigError
from rig.report.wording import printable


def report(args: argparse.Namespace) -> int:
    """With --html a site, else the pages anew, where they are; but only what is asked for, if that is another format.

    Other formats have each cell once, as its latest run left it.
    """
    from rig.report.directories import latest, runs_in

    written = []
    if exports.wanted(args):
        written += exports.write(latest([run for given in args.directories for run in runs_in(given)], tell), args)
    if args.html is not None:
        from rig.report import site

        written += site.build(args.html, args.directories, tell)
    elif not exports.wanted(args):
        written += [page for given in args.directories for page in _renewed(given)]
    if args.json:
        print_json({"written": written})
    elif not exports.to_stdout(args):
        print("\n".join(printable(str(path)) for path in written))
    return 0


def _renewed(given: Path) -> list[Path]:
    """Of many runs, one whose evidence is torn is left as it is, and said; alone it is an error."""
    from rig.report import site
    from rig.report.directories import is_run, runs_in

    if is_run(given):
        return [site.write_page(given)]
    pages = []
    for directory in runs_in(given):
        try:
            pages.append(site.write_page(directory))
        except RigError as problem:
            tell(f"no new page for {printable(directory.name)}: {problem.message}")
    return [*pages, *site.renew(given, tell)]


def history(args: argparse.Namespace) -> int:
    from rig.report import nights, site

    with site.of_results(args.results, tell) as kept:
        records = kept.records(args.pattern)
        known = records or kept.records()
    if not records:
        cells = sorted({record.id for record in known})
        some = (
            f"there are {len(cells)} cells: {', '.join(cells[:3])} ..."
            if cells
            else "`rig run` and `rig matrix` write there"
        )
        raise RequestError(f"no run in {args.results} matches {args.pattern!r}", hint=some)
    if args.json:
        print_json({"runs": [dataclasses.asdict(record) for record in nights.shown(records, args.last)]})
    else:
        print("\n".join(nights.lines(records, args.last)))
    return 0
