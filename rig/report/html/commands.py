"""The exact commands: how to run it again, how to hold it at a checkpoint, what QEMU was started with. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rig.facts import Facts
from rig.model import RunResult
from rig.report.wording import printable

# . is the directory that the page lies in
RERUN = "rig rerun ."
CHECK = "rig check ."


@dataclass(frozen=True)
class Command:
    """what: a sentence that says what it does."""

    what: str
    text: str


def commands(result: RunResult, facts: Facts | None, checkpoints: Sequence[str]) -> list[Command]:
    """facts: what was run; without them there is only the run's own id to go by. checkpoints: those it came to."""
    found = [
        Command("From this directory: the very same run, the same artefacts by hash and the same command lines", RERUN),
        Command("From this directory: judge this evidence again, without a guest", CHECK),
        Command("The same scenario anew", _line(_run(result, facts))),
    ]
    if checkpoints:
        what = "Hold the guest at a checkpoint: prints the commands to attach gdb, QMP and the console to it"
        run = _run(result, facts)
        found.append(Command(what, "\n".join(_line([*run, "--stop-at", where]) for where in checkpoints)))
    return found


def _run(result: RunResult, facts: Facts | None) -> list[str]:
    words = ["rig", "run", result.scenario, "--guest", result.guest]
    if facts is None:
        return [*words, "--kernel", result.kernel.name] if result.kernel.name else words
    words += _kernel("--kernel", facts.plan.kernel.name, facts.plan.kernel.image)
    if facts.plan.kernel.vmlinux is not None:
        words += ["--vmlinux", str(facts.plan.kernel.vmlinux)]
    if facts.plan.crash_kernel != facts.plan.kernel:
        words += _kernel("--crash-kernel", facts.plan.crash_kernel.name, facts.plan.crash_kernel.image)
    return words


def _kernel(option: str, name: str, image: Path | None) -> list[str]:
    return [option, str(image) if image is not None else name]


def _line(words: Sequence[str]) -> str:
    return printable(shlex.join(words))


def command_line(argv: object) -> str:
    """One option and its value per line, quoted for a POSIX shell; empty when there is no argv."""
    if not isinstance(argv, list | tuple):
        return ""
    lines: list[list[str]] = []
    for word in map(str, argv):
        if len(lines) > 1 and len(lines[-1]) == 1 and not word.startswith("-"):
            lines[-1].append(word)
        else:
            lines.append([word])
    return " \\\n  ".join(printable(shlex.join(line)) for line in lines)
