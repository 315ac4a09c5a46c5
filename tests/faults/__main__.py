"""python -m tests.faults: inject all faults, or those whose FAULT@PHASE matches one of the patterns; write a table.

Needs root (mounts, other processes' descriptors), QEMU, and the kernels that it boots, or minutes to build them.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.faults import injection, table
from tests.faults.catalogue import Fault
from tests.faults.injection import Outcome
from tests.faults.place import GUESTS, make_master
from tests.faults.subject import NotReached


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Inject faults into runs of the rig.")
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN", help="of FAULT@PHASE (default: all)")
    parser.add_argument("--into", type=Path, default=Path("faults.json"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where what a wrong outcome left is kept")
    parser.add_argument("--go-on", action="store_true", help="leave out what the file has, and nothing is wrong with")
    parser.add_argument("--table", action="store_true", help="only print the table of what the file has")
    args = parser.parse_args(argv)
    done, missed = table.read(args.into), []
    if not args.table:
        chosen = [
            (number, fault, phase)
            for number, (fault, phase) in enumerate(injection.all_faults())
            if any(fnmatch.fnmatchcase(f"{fault.name}@{phase}", pattern) for pattern in args.patterns)
            and not (args.go_on and (fault.name, phase) in done and not done[fault.name, phase].wrong)
        ]
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            make_master(Path(folder, "master"))
            for number, fault, phase in chosen:
                guest = GUESTS[number % len(GUESTS)]
                if outcome := _inject(fault, phase, guest, Path(folder), args.keep):
                    done[fault.name, phase] = outcome
                    table.write(args.into, done)
                else:
                    missed.append(f"{fault.name}@{phase}")
    print(table.markdown(done.values()))
    if missed:  # which shows nothing, so that it must not look like success
        print(f"\nnot injected: {', '.join(missed)}")
    return 1 if missed or any(outcome.wrong for outcome in done.values()) else 0


def _inject(fault: Fault, phase: str, guest: str, folder: Path, keep: Path | None) -> Outcome | None:
    """None when it could not be injected. keep: where all that a wrong outcome left goes."""
    place = folder / "place"
    try:
        outcome = injection.inject(fault, phase, guest, place, folder / "master")
        print(f"{'WRONG' if outcome.wrong else 'ok':5} {msgspec.json.encode(outcome).decode()}", flush=True)
        if outcome.wrong and keep is not None:
            shutil.rmtree(place / "cache", ignore_errors=True)
            shutil.copytree(place, keep / f"{fault.name}@{phase}".replace(" ", "-"), dirs_exist_ok=True)
        return outcome
    except NotReached as problem:
        print(f"NOT INJECTED {fault.name}@{phase}: {problem}", flush=True)
        return None
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
