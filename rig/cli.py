"""Commands and exit codes, nothing else. Rooms are imported by the command that needs them: --help must be quick."""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import rig
from rig.commands import bench, clusters, comparing, developer, exports, interactive, reports, runs, stock
from rig.commands.common import bisect_code, print_json, tell
from rig.errors import Cancelled, RigError, UnsuitableKernel, Untold
from rig.model import Checkpoint, Options, Until

Act = Callable[[argparse.Namespace], int]
Add = Callable[[argparse.ArgumentParser], None]

BUG = 3  # what nobody foresaw: could not judge
CANCELLED = 130  # what a shell reports for a program ended by Ctrl-C
UNREAD = 141  # and by SIGPIPE: not 1, which would say that a check failed

EXIT_CODES = """\
exit codes:
  0    everything judged, every verdict as the scenario expects
  1    judged, and a check failed that should have passed, or a sabotage went unnoticed
  2    the request is wrong: unknown name, bad file, missing option
  3    could not judge: QEMU died, the guest hung, something is missing on this machine;
       or judged and kept, but stdout is full: says where the results are
  130  cancelled (Ctrl-C or SIGTERM)
  141  nobody reads the output any more
"""

BISECT_CODES = """\
exit codes with --bisect, for `git bisect run`:
  0    good: as 0 above
  1    bad: as 1 above
  125  skip this commit: could not judge, or its kernel is not fit for the guest
  128  ends the bisection: the request is wrong, or the rig itself broke
"""

EXAMPLES = """\
examples:
  rig run panic                                   every guest of the scenario, Debian's kernels
  rig run panic --guest pae                       one guest
  rig run panic --guest x86_64 --kernel arch/x86/boot/bzImage --vmlinux vmlinux
                                                  your own kernel, as first and as crash kernel
  rig run panic --guest x86_64 --kernel-tree ~/linux
                                                  the same, from the directory that it was built in
  git bisect run sh -c 'make -j8 bzImage || exit 125
      rig run panic --guest x86_64 --kernel-tree . --bisect'
                                                  which commit broke it
  rig run panic --json | jq .runs[].result.verdict
  rig rerun results/DIR                           the very same run once more
  rig check results/DIR                           judge saved evidence again, without a guest
"""


# ---------------------------------------------------------------- the command line


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="rig",
        description="Crash x86 kernels on purpose and prove what kexec and kdump did to their memory.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}\n`rig COMMAND --help` says more about a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"rig {rig.__version__}")
    commands_ = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, act: Act, *options: Add, epilog: str = EXIT_CODES) -> argparse.ArgumentParser:
        sub = commands_.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(act=act)
        for add in options:
            add(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        return sub

    run = command(
        "run",
        "run a scenario and judge it",
        runs.run,
        *(_add_selection, _add_manner, _add_catalogue),
        epilog=f"{EXAMPLES}\n{EXIT_CODES}\n{BISECT_CODES}",
    )
    _add_until(run)
    run.add_argument(
        "--repeat", type=_count, default=1, dest="times", metavar="N", help="as often, to see what does not always come"
    )
    run.add_argument("--bisect", action="store_true", help="exit with what `git bisect run` expects, see below")
    run.add_argument(
        "--keep-dump", action="store_true", help="keep the whole dump with the evidence, for crash or drgn"
    )
    run.add_argument(
        "--stop-at",
        choices=[checkpoint.value for checkpoint in Checkpoint],
        metavar="CHECKPOINT",
        help="hold the guest there and say how to attach gdb: %(choices)s",
    )
    run.add_argument("scenario", metavar="SCENARIO", help="a name from `rig list scenarios`")
    many = command(
        "matrix",
        "run many cells: a selection, or all that a pattern matches",
        runs.matrix,
        *(_add_manner, _add_catalogue),
    )
    many.add_argument(
        "patterns",
        nargs="*",
        metavar="PATTERN",
        help="a name from `rig list selections` (default: nightly) or `rig list scenarios`, or a pattern of runs' ids: "
        "'panic*@pae/*'",
    )
    _add_until(many)
    many.add_argument("--plan", action="store_true", help="only say which cells these are and how long they take")
    many.add_argument("--shard", type=_shard, metavar="K/N", help="only the Kth of N parts that take equally long")
    many.add_argument(
        "--resume", action="store_true", help="go on with what was stopped: what is finished is not run again"
    )
    many.add_argument(
        "--no-retry", action="store_false", dest="retry", help="no second attempt at what could not be judged"
    )
    text = "have the workers of this scheduler run them: tcp://HOST:PORT or tls://HOST:PORT"
    many.add_argument("--cluster", metavar="ADDRESS", help=text)
    clusters.add_tls(many)
    about = "be a part of a cluster that runs cells: its scheduler, or one of its workers"
    command("cluster", about, clusters.cluster, clusters.add_options, _add_jobs, _add_catalogue)
    rerun = command(
        "rerun", "run again what left an evidence directory: the very same run", developer.rerun, _add_results
    )
    rerun.add_argument("directory", type=Path, metavar="RESULT_DIR")
    rerun.add_argument(
        "--anyway", action="store_true", help="with what there is where it can't be the same; the result says so"
    )
    check = command("check", "judge saved evidence again, without a guest", runs.check)
    check.add_argument("directories", nargs="+", type=Path, metavar="RESULT_DIR")
    report = command("report", "write reports from saved evidence", reports.report, exports.add_options)
    text = "of one run, or of many: results/ itself"
    report.add_argument("directories", nargs="+", type=Path, metavar="RESULT_DIR", help=text)
    text = "a site of all of them, to be published (default: the pages beside the evidence, anew)"
    report.add_argument("--html", type=Path, metavar="DIR", help=text)
    history = command("history", "show what runs came to, night after night", reports.history, _add_results)
    text = "of runs' ids, like 'panic*@pae/*', or a scenario (default: all)"
    history.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help=text)
    history.add_argument("--last", type=_count, default=0, metavar="N", help="the last N runs of each cell")
    about = "compare two runs, or two directories of runs: before and after a change"
    command("compare", about, comparing.compare, comparing.add_options, epilog=comparing.EXIT_CODES)
    lists = command("list", "list what there is to choose from", stock.list_, _add_catalogue)
    lists.add_argument("--names", action="store_true", help="nothing but the names, one a line")
    lists.add_argument("what", nargs="?", choices=stock.LISTS, metavar="WHAT", help=", ".join(stock.LISTS))
    command("fetch", "download what runs need, to run offline", stock.fetch, _add_selection, _add_catalogue)
    build = command("build", "build a kernel from source, for the guests' flavours", stock.build, _add_catalogue)
    build.add_argument("kernel", metavar="KERNEL", help="a name from `rig list kernels` whose file names a source")
    build.add_argument("--guest", action="append", default=[], metavar="NAME", help="repeatable; default: all guests")
    build.add_argument("--jobs", type=_count, default=0, metavar="N", help="of make; default: one for each CPU")
    about = "boot a guest and be in it, or have it run a script from stdin"
    shell = command("shell", about, interactive.shell, _add_kernels, _add_accel, _add_catalogue)
    text = "with the new image loaded as SCENARIO does it (default: nothing is loaded)"
    shell.add_argument("--arm", metavar="SCENARIO", help=text)
    shell.add_argument("guest", metavar="GUEST", help="a name from `rig list guests`")
    about = "sabotage runs on purpose and see that it is noticed"
    selftest = command("selftest", about, runs.selftest, _add_guest, _add_manner, _add_catalogue)
    extent = selftest.add_mutually_exclusive_group()
    text = "modules and the debugger only, no kernels to build, kdump only, on one guest: x86_64, or --guest"
    extent.add_argument("--quick", action="store_true", help=text)
    extent.add_argument("--all", action="store_false", dest="quick", help="everything (default)")
    about = "measure the rig beside what one would do instead"
    options = (bench.add_options, _add_guest, _add_accel, _add_catalogue)
    command("bench", about, bench.bench, *options, epilog=bench.EXIT_CODES)
    completion = command("completion", "print a script by which a shell completes rig's words", _completion)
    completion.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")
    command("doctor", "say what this machine has and lacks", stock.doctor, _add_results, _add_catalogue)
    return top


def _add_selection(sub: argparse.ArgumentParser) -> None:
    _add_guest(sub)
    _add_kernels(sub)


def _add_kernels(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--kernel", metavar="NAME|BZIMAGE", help="default: the guest's own")
    sub.add_argument("--vmlinux", type=Path, metavar="FILE", help="the kernel's vmlinux, for names in reports")
    sub.add_argument(
        "--kernel-tree", type=Path, metavar="DIR", help="bzImage and vmlinux of a build: source tree or O= directory"
    )
    sub.add_argument("--crash-kernel", metavar="NAME|BZIMAGE|VMLINUX", help="default: the same as the kernel")


def _add_guest(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--guest", action="append", default=[], metavar="NAME", help="repeatable; default: those of the scenario"
    )


def _add_manner(sub: argparse.ArgumentParser) -> None:
    _add_results(sub)
    _add_jobs(sub)
    sub.add_argument("--seed", type=int, metavar="N", help="of what a sabotage chooses at random; always recorded")
    sub.add_argument("--keep-memory", action="store_true", help="keep whole memory images with the evidence")
    text = "boot every guest, also where one was booted and armed just so before"
    sub.add_argument("--no-template", action="store_false", dest="template", help=text)
    _add_accel(sub)


def _add_until(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--until",
        type=Until,
        choices=tuple(Until),
        default=Until.END,
        metavar="WHERE",
        help="handover: enter the new kernel and don't run it; what can be seen by then is judged",
    )


def _add_jobs(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--jobs", type=_count, default=0, metavar="N", help="CPUs of guests at a time; default: this machine's"
    )


def _add_accel(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--accel",
        choices=("auto", "tcg", "kvm"),
        default="auto",
        help="auto takes KVM only when a trial shows that it works (default)",
    )
    sub.add_argument(
        "--deadline",
        type=_seconds,
        default=Options.deadline,
        metavar="SECONDS",
        help="the longest that a phase may take (default: %(default)g)",
    )


def _add_results(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=Path, default=Options.results, metavar="DIR", help="default: %(default)s/")


def _add_catalogue(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--catalogue",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="a directory with guests/, kernels/, scenarios/ of your own; repeatable (also: RIG_CATALOGUE)",
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    """K/N as (K, N)."""
    match = re.fullmatch(r"([1-9][0-9]*)/([1-9][0-9]*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N, like 1/4, with K from 1 to N")
    return int(match[1]), int(match[2])


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


# ---------------------------------------------------------------- main


def _completion(args: argparse.Namespace) -> int:
    """Here, and not in rig/commands: it is the parser that is completed."""
    from rig.completion import script

    text = script(parser(), args.shell)
    if args.json:
        print_json({"shell": args.shell, "script": text})
    else:
        print(text)
    return 0


def program() -> None:
    """Run the command line as the process that it is."""
    # A run makes objects by the hundred thousand that last until its end: looking through them all, each time that a
    # few hundred more are there, is most of what garbage collection does by default.
    gc.set_threshold(20_000, 5, 5)
    # Seconds. By default whoever waits for the guest, and then has a word for it, waits another 5 ms for a thread that
    # imports what comes later.
    sys.setswitchinterval(0.0005)
    status = CANCELLED  # what main() itself lets pass is Ctrl-C
    # Registered first, called last. It spares what the interpreter does at its end: to give back, piece by piece, what
    # the system takes back at once.
    atexit.register(lambda: os._exit(status))
    try:
        status = main()
    except SystemExit as refused:  # by argparse: 0 after --help
        status = refused.code if isinstance(refused.code, int) else 0
    try:
        sys.stdout.flush()
    except OSError as problem:
        status = UNREAD if isinstance(problem, BrokenPipeError) else BUG
        if status == BUG:
            tell(_unforeseen(problem))
        _silence(sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; argparse itself exits with 2 for what it refuses."""
    words = sys.argv[1:] if argv is None else argv
    bisects = _bisects(words)
    _open_what_is_closed()
    # Python's own 1 for what nobody foresaw would call a kernel bad; a commit, too, as argparse's 2 would.
    try:
        return bisect_code(_main(words)) if bisects else _main(words)
    except SystemExit as refused:
        raise SystemExit((bisect_code(2) if refused.code else 0) if bisects else refused.code) from refused
    except Exception:
        tell(f"this is a bug of the rig, not of the kernel: nothing was judged\n{traceback.format_exc()}")
        return bisect_code(2) if bisects else BUG
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            _silence(sys.stderr)


def _bisects(words: Sequence[str]) -> bool:
    """Whether --bisect was given, abbreviated perhaps: to be known before argparse refuses something else."""
    return any(word.startswith("--b") and "--bisect".startswith(word) for word in words)


def _main(words: Sequence[str]) -> int:
    args = parser().parse_args(words)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not so where somebody captures it
        sys.stdout.reconfigure(errors="backslashreplace")  # signs like a tick, in a locale that has none
    try:
        code = _act(args, _bisects(words))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _cancelled("cancelled")
    except BrokenPipeError:  # `rig list | head`
        code = UNREAD
    except Untold as error:
        tell(str(error))
        code = error.exit_code
    except OSError as problem:
        tell(_unforeseen(problem))
        code = BUG
    else:
        return code
    _silence(sys.stdout)
    return code


def _act(args: argparse.Namespace, bisects: bool) -> int:
    try:
        code: int = args.act(args)
        return code
    except Cancelled as error:
        return _cancelled(error.message)
    except Untold:
        raise  # stdout takes nothing: no JSON on it, either
    except RigError as error:
        code = _refuse(error, args.json)
        # This commit's kernel can't be judged; the next one's may be fit.
        return 3 if isinstance(error, UnsuitableKernel) and bisects else code


def _unforeseen(problem: OSError) -> str:
    """What no command knew what to do about: stdout on a full disk, most of all."""
    what = f"{problem.filename}: {problem.strerror}" if problem.filename else f"{problem.strerror} (the output?)"
    return f"{what}\n  hint: make room, or send the output elsewhere"


def _open_what_is_closed() -> None:
    """Whoever starts the rig without stdin, stdout or stderr (`>&-`) gets /dev/null there. The next file that is opened
    would have its number, and what QEMU says there would end in it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process


def _silence(stream: TextIO) -> None:
    """What is still buffered must not fail once more at exit, nor change the exit status then."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _cancelled(text: str) -> int:
    tell(text)
    return CANCELLED


def _refuse(error: RigError, as_json: bool) -> int:
    tell(str(error))
    if as_json:
        print_json({"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}})
    return error.exit_code
