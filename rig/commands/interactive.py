"""The commands in which the user takes part while a guest runs: run --stop-at, shell."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from rig.commands.common import (
    cancel_on_signal,
    exit_code,
    options_of,
    plans_of,
    print_json,
    print_verdicts,
    require_writable,
    show_and_keep,
)
from rig.errors import CouldNotJudge, RequestError
from rig.model import Checkpoint, RunPlan
from rig.report.wording import printable_lines

SHELL_SCENARIO = "panic"  # whose guest `rig shell` boots, unless another one is to be armed

if TYPE_CHECKING:
    from rig.stop_at import Attachment


def run_held(args: argparse.Namespace, plans: list[RunPlan]) -> int:
    """One run in this thread, without a live display: the user's own words must stay where they are."""
    from rig import conductor
    from rig.hold import private_folder, require_possible
    from rig.progress import PlainProgress
    from rig.stop_at import StopAt

    checkpoint, stdin = Checkpoint(args.stop_at), sys.__stdin__.fileno() if sys.__stdin__ else -1
    require_possible(plans, checkpoint, stdin)
    (plan,), options = plans, options_of(args)
    require_writable(options.results)
    progress = PlainProgress(sys.stderr)
    with cancel_on_signal("ending the guest") as cancel, private_folder() as folder:
        progress.start(plan.id)
        stop = StopAt(checkpoint, folder, stdin, lambda attachment: _announce(attachment, args.json))
        finished = conductor.run(plan, options, lambda text: progress.say(plan.id, text), cancel, stop)
    show_and_keep([finished], options.results, lambda done: print_verdicts(done, args.json))
    return exit_code([finished[0]])


def _announce(attachment: Attachment, as_json: bool) -> None:
    if as_json:
        import msgspec

        print(msgspec.json.encode({"held": attachment}).decode(), file=sys.stderr, flush=True)
        return
    lines = (
        f"{attachment.run}: held at {attachment.checkpoint}",
        *(f"  {cpu}" for cpu in attachment.cpus),
        "  in another terminal:",
        *(f"    {command}" for command in (attachment.gdb, attachment.qmp, attachment.console)),
        "  Enter lets the run go on, Ctrl-C ends it.",
    )
    print("\n".join(lines), file=sys.stderr, flush=True)


def shell(args: argparse.Namespace) -> int:
    """On a terminal the user is in the guest; otherwise stdin is a script that the guest runs."""
    from rig import terminal
    from rig.progress import PlainProgress
    from rig.vm.deadline import Deadline

    names = [args.arm or SHELL_SCENARIO]
    (one,) = plans_of(argparse.Namespace(**vars(args) | {"guest": [args.guest]}), names)
    if one.skip:
        raise RequestError(f"{one.id} can't be run: {one.skip}")
    script = _script(args.json)
    options, name = options_of(args), f"{one.guest.name}/{one.kernel.name}"
    progress = PlainProgress(sys.stderr)
    progress.start(name)

    def listener(text: str) -> None:
        progress.say(name, text)

    try:
        with (
            cancel_on_signal("ending the guest") as cancel,
            terminal.booted(one, options, bool(args.arm), listener, cancel) as (vm, hello),
        ):
            listener("shell")
            if script is not None:
                output = vm.shell.run(script, Deadline.after(options.deadline, "the script's end"))
            else:
                print(f"{name}: Ctrl-] leaves, and ends the guest", file=sys.stderr, flush=True)
                seat = terminal.Terminal(sys.stdin.fileno(), sys.stdout.fileno(), one.guest.name)
                with terminal.raw(sys.stdin.fileno()):
                    why = seat.converse(vm, hello)
                print(f"\n{name}: {why}", file=sys.stderr)
                return 0
    except CouldNotJudge as problem:
        if problem.console:
            print("\n".join(printable_lines(problem.console)), file=sys.stderr)
        raise
    if args.json:
        print_json({"guest": one.guest.name, "kernel": one.kernel.name, "release": hello.release, "output": output})
    else:
        print(output, end="")
    return 0


def _script(as_json: bool) -> str | None:
    """What stdin says before anything boots; None when the user sits there."""
    if sys.stdin is not None and sys.stdin.isatty():
        if as_json:
            raise RequestError("--json is for a script on stdin, and stdin is a terminal")
        return None
    text = sys.stdin.read() if sys.stdin is not None else ""
    if not text.strip():
        raise RequestError("stdin is neither a terminal nor a script: there is nothing to do in the guest")
    return text
