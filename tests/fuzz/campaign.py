"""Fuzzing campaigns: `python -m tests.fuzz.campaign TARGET --inputs N`. With atheris (the extra `fuzz`), by coverage.

A target is a function fuzz_NAME(data) of a module tests/fuzz/*_targets.py, which raises only where the rig does what it
must not. A function seeds_NAME() beside it, where there is one, gives inputs to begin with; so does corpus/NAME/. A
failure is also an input that takes more than --seconds of CPU, or more memory than --memory lets it have.

An input of each distinct failure (by its type, and the line of the rig that it came from) is put into corpus/NAME/,
where tests/fuzz/test_bytes_corpus.py finds it. Exit code: 0 when nothing failed, 1 when something did, 2 for a wrong
request.

atheris 3.0 keeps the result of each comparison of numpy arrays in instrumented code for ever: targets and what they
call compare large ones by a function (np.array_equal), or memory runs out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
ROOT = HERE.parents[1]
_MIB = 1 << 20
_LONGEST = 4096  # bytes of an input, unless a seed is longer
_STUCK = 600  # seconds of real time: then libFuzzer ends a target that hangs in C code, where no signal handler gets to

Fuzz = Callable[[bytes], None]


class TooLong(BaseException):
    """An input took more CPU time than it may. Not an Exception: no target catches it by mistake."""


@dataclass(frozen=True)
class Target:
    name: str
    run: Fuzz
    seeds: tuple[bytes, ...]


@dataclass
class Tally:
    """What came of a campaign. failures: by what they are, the smallest input and the traceback of the first."""

    inputs: int = 0
    failures: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def failed(self, data: bytes, problem: BaseException) -> None:
        key = distinct(problem)
        known = self.failures.get(key)
        if known is None:
            self.failures[key] = data, "".join(traceback.format_exception(problem))
        elif len(data) < len(known[0]):
            self.failures[key] = data, known[1]


def distinct(problem: BaseException) -> str:
    """What failures are told apart by: the exception's type, and the last line of this project that it came through."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if Path(f.filename).is_relative_to(ROOT)]
    frames = [frame for frame in frames if frame.filename != __file__]
    where = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "nowhere"
    return f"{type(problem).__name__} at {where}"


def modules() -> list[str]:
    return [f"tests.fuzz.{path.stem}" for path in sorted(HERE.glob("*_targets.py"))]


def targets() -> dict[str, Target]:
    """All targets by name, with what they begin with."""
    found: dict[str, Target] = {}
    for module in map(importlib.import_module, modules()):
        for key, run in vars(module).items():
            if key.startswith("fuzz_") and callable(run):
                name = key.removeprefix("fuzz_")
                found[name] = Target(name, run, (*getattr(module, f"seeds_{name}", tuple)(), *kept(name)))
    return found


def kept(name: str) -> list[bytes]:
    """What once failed."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """:raise TooLong: in the body, when it has taken so much CPU time (not real time: the machine may be busy)"""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TooLong(f"more than {seconds} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def try_one(target: Target, data: bytes, seconds: float, tally: Tally) -> None:
    tally.inputs += 1
    try:
        with limited(seconds):
            target.run(data)
    except (Exception, TooLong) as problem:
        tally.failed(data, problem)


def keep(name: str, tally: Tally) -> list[str]:
    """The failures' inputs go into the corpus. Returns a line for each."""
    lines = []
    for key, (data, told) in tally.failures.items():
        path = CORPUS / name / hashlib.sha256(data).hexdigest()[:12]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        lines.append(f"{key}: {path.relative_to(ROOT)} ({len(data)} bytes)\n{told}")
    return lines


def _cap_memory(mib: int) -> None:
    """So much address space above what is in use now; a numpy that is loaded has mapped a lot."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    cap = pages * resource.getpagesize() + mib * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))


def _fuzz(atheris: Any, target: Target, words: argparse.Namespace) -> NoReturn:
    """libFuzzer never comes back: this ends the process after so many inputs."""
    tally, work = Tally(), Path(tempfile.mkdtemp(prefix="fuzz-"))
    more = [path.read_bytes() for path in sorted(words.seeds.iterdir())] if words.seeds else []
    seeds = [*target.seeds, *more]
    for number, seed in enumerate(seeds):
        (work / str(number)).write_bytes(seed)
    started = time.monotonic()

    def finish() -> NoReturn:
        seconds = time.monotonic() - started
        shutil.rmtree(work)
        for line in keep(target.name, tally):
            print(line)
        print(
            f"{target.name}: {tally.inputs} inputs, {len(tally.failures)} distinct failures, {seconds:.0f} s,"
            f" seed {words.seed}"
        )
        sys.stdout.flush()
        os._exit(1 if tally.failures else 0)

    def one(data: bytes) -> None:
        try_one(target, data, words.seconds, tally)
        if tally.inputs >= words.inputs:
            finish()

    for number in (signal.SIGINT, signal.SIGTERM):  # what was done until then counts
        signal.signal(number, lambda *_: finish())

    longest = max([_LONGEST, *map(len, seeds)])
    argv = [
        sys.argv[0],
        f"-seed={words.seed}",
        f"-max_len={longest}",
        f"-timeout={_STUCK}",
        f"-report_slow_units={_STUCK}",
    ]
    argv += ["-rss_limit_mb=0", "-handle_int=0", "-handle_term=0"]  # --memory is enough, and the signals are ours
    atheris.Setup([*argv, f"-artifact_prefix={CORPUS}/stuck-{target.name}-", str(work)], one)
    _cap_memory(words.memory)
    atheris.Fuzz()
    raise AssertionError("libFuzzer came back")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.campaign", description="Fuzz one of the rig's readers.")
    parser.add_argument("target", nargs="?", help="its name; without one, all names are listed")
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the mutations, default: %(default)s")
    parser.add_argument("--seeds", type=Path, metavar="DIR", help="files to begin with, besides the target's own")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="CPU time for one input")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="for one input")
    words = parser.parse_args(argv)
    if words.target is None:
        print("\n".join(targets()))
        return 0
    try:
        import atheris
    except ImportError:
        print("campaign: atheris is not installed: pip install 'rig[fuzz]', or pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["rig", "tests.fuzz", "tarfile"]):  # what of it is Python
        known = targets()
    if words.target not in known:
        print(f"campaign: no target {words.target}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    _fuzz(atheris, known[words.target], words)


if __name__ == "__main__":
    sys.exit(main())
