"""Machine-readable reports, written by `rig report`: JUnit XML, KTAP, KCIDB JSON, Markdown."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rig.errors import EvidenceError, RequestError
from rig.model import RunResult

Results = Sequence[tuple[RunResult, Path]]

STDOUT = Path("-")
FORMATS = {
    "junit": "JUnit XML",
    "ktap": "KTAP, version 1, of the kernel's own tests",
    "kcidb": "JSON for kernelci.org's database; runs that expect a failure are left out",
    "markdown": "a summary in GitHub's Markdown, for $GITHUB_STEP_SUMMARY",
}


def add_options(sub: argparse.ArgumentParser) -> None:
    for name, text in FORMATS.items():
        sub.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"{text}; - for stdout")
    sub.add_argument("--kcidb-origin", default="rig", metavar="NAME", help="who sends it (default: %(default)s)")


def wanted(args: argparse.Namespace) -> bool:
    """Whether any of the formats is asked for."""
    return any(getattr(args, name, None) is not None for name in FORMATS)


def to_stdout(args: argparse.Namespace) -> bool:
    """Whether stdout is taken by one of them."""
    return any(getattr(args, name) == STDOUT for name in FORMATS)


def write(results: Results, args: argparse.Namespace) -> list[Path]:
    """What is asked for. Returns the files written, without stdout.

    :raise RequestError: two of them are to go to one file, or with --json to stdout; or a file can't be written
    """
    from rig.report.junit import junit
    from rig.report.ktap import ktap
    from rig.report.markdown import markdown

    runs = [result for result, _ in results]
    make: dict[str, Callable[[], bytes]] = {
        "junit": lambda: junit(results),
        "ktap": lambda: ktap(runs).encode(),
        "kcidb": lambda: _kcidb(results, args.kcidb_origin),
        "markdown": lambda: markdown(runs).encode(),
    }
    asked = [(f"--{name}", getattr(args, name), make[name]) for name in FORMATS if getattr(args, name) is not None]
    _require_apart([*((word, target) for word, target, _ in asked), *([("--json", STDOUT)] if args.json else [])])
    for _, target, made in asked:
        _put(target, made())
    return [target for _, target, _ in asked if target != STDOUT]


def _require_apart(targets: Sequence[tuple[str, Path]]) -> None:
    for target in {target for _, target in targets}:
        words = [word for word, other in targets if other == target]
        if len(words) > 1:
            where = "stdout" if target == STDOUT else str(target)
            raise RequestError(f"{' and '.join(words)} can't both go to {where}", hint="give each a file of its own")


def _kcidb(results: Results, origin: str) -> bytes:
    """Says what is left out, and validates where kcidb-io is installed.

    :raise EvidenceError: KCIDB would refuse what these results make
    """
    from rig.evidence.reader import Evidence
    from rig.evidence.writer import to_json
    from rig.report.kcidb import kcidb, left_out

    told = [(result, Evidence(where).facts.plan.guest.arch) for result, where in results if not left_out(result)]
    document = kcidb(told, origin)
    for why, count in Counter(filter(None, (left_out(result) for result, _ in results))).items():
        print(f"rig: kcidb: left out: {'1 run' if count == 1 else f'{count} runs'}: {why}", file=sys.stderr)
    try:
        from jsonschema import ValidationError
        from kcidb_io.schema import V5_0
    except ImportError:
        print("rig: kcidb: not validated: kcidb-io is not installed (pip install 'rig[kcidb]')", file=sys.stderr)
        return to_json(document)
    try:
        V5_0.validate_exactly(document)
    except ValidationError as problem:
        raise EvidenceError(f"KCIDB refuses these results: {problem.message} at {problem.json_path}") from problem
    return to_json(document)


def _put(target: Path, blob: bytes) -> None:
    if target == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(blob)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(blob)
    except OSError as error:
        raise RequestError(f"{target} can't be written: {error.strerror}", hint="name another file") from error
