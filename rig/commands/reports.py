"""The commands that write reports from results: report."""

from __future__ import annotations

import argparse

from rig.commands import exports
from rig.commands.common import print_json
from rig.errors import RequestError


def report(args: argparse.Namespace) -> int:
    from rig.evidence import Evidence
    from rig.judge import judge_dir
    from rig.report.html import render_run
    from rig.report.listing import hand_over_listing

    written = (
        exports.write([(judge_dir(path), path) for path in args.directories], args) if exports.wanted(args) else []
    )
    for directory in () if exports.wanted(args) and args.html is None else args.directories:
        evidence = Evidence(directory)
        page = render_run(judge_dir(directory), evidence, hand_over_listing(evidence))
        target = directory / "report.html" if args.html is None else args.html / f"{directory.resolve().name}.html"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(page, encoding="utf-8")
        except OSError as error:
            raise RequestError(
                f"{target} can't be written: {error.strerror}", hint="choose a place with --html DIR"
            ) from error
        written.append(target)
    if args.json:
        print_json({"written": written})
    elif not exports.to_stdout(args):
        print("\n".join(map(str, written)))
    return 0
