"""The faults: what is done, in which phases, and what may come of it.

There is no fault of which a wrong verdict may come. PASS is right when the guest really did survive: the fault did not
touch it. FAIL is right when the guest's own crash kernel really died.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.faults import acts
from tests.faults.place import Place, damage
from tests.faults.subject import LIVE, PHASES

PASS, FAIL, ERROR = "pass", "fail", "error"
GAVE_UP = "gave up"  # exit 3 without a result: says why, and what to do
REFUSED, CANCELLED, UNREAD, KILLED = "refused", "cancelled", "unread", "killed"
# Exit 3 with a result that is no error. The run was judged and all of it is kept; what could not be delivered is the
# telling. Right where stdout takes nothing, and nowhere else: see tests.faults.injection for what must come with it.
UNTOLD = "untold"
UNJUDGED = frozenset({ERROR, GAVE_UP})
UNTOUCHED = frozenset({PASS})
EITHER = UNJUDGED | UNTOUCHED
ENDED = frozenset({CANCELLED})
TYPED = ("arm", "dump")  # phases in which the guest's shell takes what is typed
LATE = PHASES[7:]
SOME = ("boot", "hand-over", "dump")  # for what is the same in all


@dataclass(frozen=True)
class Fault:
    """name: of the table's row. accepts: what may come of it; `but`: in these phases instead.

    guest: keys of a guest of its own, added to the one asked for. room: MiB of a file system of its own for results.
    setting: environment of the rig. before: what the shell that starts it does first. text: it prints for people.
    """

    name: str
    act: acts.Act
    accepts: frozenset[str]
    phases: tuple[str, ...] = LIVE
    but: Mapping[str, frozenset[str]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    guest: str = ""
    room: int = 0
    pipes: bool = False
    templates: str = ""  # USED or MADE; empty: none before the guest is armed, else used
    before: str = ""
    text: bool = False
    setting: Callable[[Place], Mapping[str, str]] = lambda _: {}
    quick: tuple[str, ...] = ()  # the phases that `vm` includes

    def accepted(self, phase: str) -> frozenset[str]:
        return self.but.get(phase, self.accepts)


def _clock(place: Place) -> Mapping[str, str]:
    library = acts.build_clock(place.root)
    return {"LD_PRELOAD": str(library), "RIG_FAULT_CLOCK": str(place.root / "clock")}


def _truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    """One bit, in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :] if content else content


# A rig that is asked to stop when all but the last files are written may still give its result.
LATE_CANCEL = dict.fromkeys(LATE, ENDED | UNTOUCHED)
HANGS = ("--deadline", "20")
NEVER = ("--deadline", "12")  # for what hangs on purpose, and long before

PHASED = (
    Fault("QEMU: kill -9", acts.signal_qemu(signal.SIGKILL), UNJUDGED, quick=("boot", "hand-over")),
    Fault("QEMU: SIGTERM", acts.signal_qemu(signal.SIGTERM), UNJUDGED),
    Fault("QEMU: SIGSTOP", acts.signal_qemu(signal.SIGSTOP), UNJUDGED, words=HANGS),
    Fault("QEMU: stopped for 3 s", acts.suspend(lambda subject: subject.qemu), UNTOUCHED, SOME),
    Fault("rig: kill -9", acts.signal_rig(signal.SIGKILL), frozenset({KILLED}), PHASES, quick=("panic", "report")),
    Fault("rig: SIGTERM", acts.signal_rig(signal.SIGTERM), ENDED, PHASES, LATE_CANCEL),
    Fault("rig: SIGINT", acts.signal_rig(signal.SIGINT), ENDED, PHASES, LATE_CANCEL),
    Fault(
        "rig: SIGINT twice",
        acts.signal_rig(signal.SIGINT, signal.SIGINT),
        ENDED,
        PHASES,
        LATE_CANCEL,
        quick=("machine-kexec",),
    ),
    Fault("rig: SIGHUP", acts.signal_rig(signal.SIGHUP), ENDED, SOME, LATE_CANCEL),
    Fault("rig: stopped for 3 s", acts.suspend(lambda subject: subject.pid), UNTOUCHED, SOME),
    # Writing the report takes a moment: the disk may be full only after it.
    Fault("disk full", acts.fill, UNJUDGED, PHASES, but={"report": EITHER}, room=64, quick=("panic", "report")),
    Fault("disk full for a phase", acts.fill_for_a_phase, EITHER, (*LIVE, "judge"), room=64, quick=("hand-over",)),
    Fault("results removed", acts.remove_results, UNJUDGED, PHASES, but={"report": EITHER}, quick=("dump",)),
    Fault("cache removed", acts.remove_cache, EITHER, PHASES, quick=("crash-boot",)),
    Fault("cache: half of each file", acts.damage_cache(_truncated), EITHER, PHASES, words=HANGS),
    Fault("cache: other content", acts.damage_cache(lambda _: acts.OTHER_TEXT), EITHER, PHASES[:3], words=HANGS),
    Fault("QMP closed", acts.cut_off("qmp"), UNJUDGED, but={"dump": EITHER}, quick=("panic",)),
    Fault("gdbstub closed", acts.cut_off("gdb"), UNJUDGED, but=dict.fromkeys(("boot", "crash-boot", "dump"), EITHER)),
    Fault("console closed", acts.cut_off("console"), EITHER, words=HANGS),
    Fault("control line closed", acts.cut_off("control"), EITHER, words=HANGS),
    Fault("console: 100 MB", acts.flood("console"), EITHER, quick=("crash-boot",)),
    Fault("control line: 100 MB", acts.flood("control"), EITHER, SOME),
    Fault(
        "console: every marker",
        acts.guest_prints(acts.MARKERS, "console"),
        EITHER,
        words=HANGS,
        quick=("panic", "crash-boot"),
    ),
    Fault("control line: every marker", acts.guest_prints(acts.MARKERS, "control"), EITHER, words=HANGS),
    Fault("console: no text", acts.guest_prints(acts.NOT_TEXT, "console"), EITHER, SOME, words=HANGS),
    Fault("control line: no text", acts.guest_prints(acts.NOT_TEXT, "control"), EITHER, SOME, words=HANGS),
    Fault("clock: 10 years on", acts.jump_clock(10 * 365 * 86400), UNTOUCHED, PHASES, setting=_clock, quick=("boot",)),
    Fault("clock: a day back", acts.jump_clock(-86400), UNTOUCHED, SOME, setting=_clock),
    Fault(
        "stdout closed", acts.close_pipe("stdout"), frozenset({UNREAD}), ("boot", "crash-boot", "report"), pipes=True
    ),
    Fault("stdout closed (text)", acts.close_pipe("stdout"), frozenset({UNREAD}), ("boot",), pipes=True, text=True),
    Fault("stderr closed", acts.close_pipe("stderr"), EITHER, ("boot", "crash-boot", "dump"), pipes=True),
)

DIED = frozenset({ERROR, FAIL})  # FAIL: its panic had begun, and its crash kernel did not live
MISBEHAVING = (
    Fault("guest reboots", acts.guest_does("reboot -f"), UNJUDGED, TYPED, quick=("arm",)),
    Fault("guest powers off", acts.guest_does("poweroff -f"), UNJUDGED, TYPED, words=HANGS),  # halts, without ACPI
    Fault(
        "guest triple-faults",
        acts.guest_does("reboot -f"),
        UNJUDGED,
        TYPED,
        guest='cmdline = "reboot=t"\ncrash_cmdline = "reboot=t"',
    ),
    Fault("guest panics", acts.guest_does("echo c >/proc/sysrq-trigger"), UNJUDGED, TYPED, words=HANGS),
    Fault("guest loops", acts.guest_does("while :; do :; done"), UNJUDGED, TYPED, words=NEVER, but={"dump": EITHER}),
    Fault("guest floods", acts.guest_does("cat /dev/zero"), UNJUDGED, TYPED, words=NEVER, but={"dump": EITHER}),
    Fault("guest's shell ends", acts.guest_does("exit 0"), EITHER, TYPED, words=NEVER),
)


def _first(cmdline: str) -> str:
    return f'cmdline = "{cmdline}"'


def _crash(cmdline: str) -> str:
    return f'crash_cmdline = "{cmdline}"'


SILENT = "8250.nr_uarts=0 panic=0"  # without a console its init ends, and the kernel stands still with nothing said
STUCK = "rdinit=/nowhere root=/dev/sda rootwait"
# How the guest was made: it never gets through the phase.
UNFIT = tuple(
    Fault(name, acts.nothing, accepts, (phase,), guest=guest(cmdline), words=NEVER)
    for phase, guest, on_death in (("boot", _first, UNJUDGED), ("crash-boot", _crash, frozenset({FAIL})))
    for name, cmdline, accepts in (
        ("kernel: serial silence", SILENT, UNJUDGED),
        ("kernel: no init", "rdinit=/nowhere", on_death),
        ("kernel: triple fault", "reboot=t rdinit=/nowhere", on_death),
        ("kernel: waits for ever", STUCK, UNJUDGED),
    )
)

USED, MADE = "used", "made"  # a template of the guest is there; it is not, and the run makes it
WHOLE = "start"  # as a phase: it is so from the start


def _says(**variables: str) -> Callable[[Place], Mapping[str, str]]:
    return lambda _: variables


BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
EXTRAS = ("kcidb_io", "pytest", "psutil", "volatility3", "drgn", "playwright", "jsonschema", "lxml", "yaml")


def _without_extras(place: Place) -> Mapping[str, str]:
    """A Python that has what the rig cannot do without, and none of the rest."""
    folder = place.root / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCK.format(absent=EXTRAS))
    return {"PYTHONPATH": str(folder)}


def _read_only(place: Place) -> Mapping[str, str]:
    subprocess.run(["mount", "-o", "remount,ro", str(place.results)], check=True)
    return {}


def _no_temporary(place: Place) -> Mapping[str, str]:
    return {"TMPDIR": str(place.root / "nowhere")}


def _template(name: str, change: Callable[[bytes], bytes]) -> Callable[[Place], Mapping[str, str]]:
    """A file of each template gets another content."""

    def setting(place: Place) -> Mapping[str, str]:
        for path in place.templates.glob(f"*/{name}"):
            damage(path, change(path.read_bytes()))
        return {}

    return setting


def _template_lacks(name: str) -> Callable[[Place], Mapping[str, str]]:
    def setting(place: Place) -> Mapping[str, str]:
        for path in place.templates.glob(f"*/{name}"):
            path.unlink()
        return {}

    return setting


def _no_room_for_templates(place: Place) -> Mapping[str, str]:
    place.templates.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place.templates)], check=True)
    return {}


TEMPLATES = (
    *(
        Fault(f"template: {what}", acts.nothing, UNTOUCHED, (WHOLE,), setting=setting, templates=USED)
        for what, setting in (
            ("half of its RAM", _template("ram", _truncated)),
            ("a bit of its RAM", _template("ram", _flipped)),
            ("no RAM", _template_lacks("ram")),
            ("half of its state", _template("state", _truncated)),
            ("a bit of its state", _template("state", _flipped)),
            ("no state", _template_lacks("state")),
            ("half of its seal", _template("told.json", _truncated)),
            ("other seal", _template("told.json", lambda _: acts.OTHER_TEXT)),
            ("no seal", _template_lacks("told.json")),
        )
    ),
    Fault("template removed", acts.remove_templates, UNTOUCHED, ("prepare", "boot", "panic", "dump"), templates=USED),
    Fault("template: no room", acts.nothing, UNTOUCHED, (WHOLE,), setting=_no_room_for_templates, templates=MADE),
    Fault("template: made by two", acts.second_maker, UNTOUCHED, ("boot",), templates=MADE),
    Fault("template: kill -9 as made", acts.kill_maker, frozenset({KILLED}), ("arm",), templates=MADE, quick=("arm",)),
)

REFUSED_ONLY, UNTOLD_ONLY = frozenset({REFUSED}), frozenset({UNTOLD})
SURROUNDINGS = (
    Fault("no extras", acts.nothing, UNTOUCHED, (WHOLE,), setting=_without_extras),
    Fault("results read-only", acts.nothing, REFUSED_ONLY, (WHOLE,), room=1, setting=_read_only, quick=(WHOLE,)),
    Fault("no TMPDIR", acts.nothing, UNTOUCHED, (WHOLE,), setting=_no_temporary),
    Fault("stdout full", acts.once_more, UNTOLD_ONLY, (WHOLE,), before="exec >/dev/full"),
    Fault("stdout full (text)", acts.once_more, UNTOLD_ONLY, (WHOLE,), before="exec >/dev/full", text=True),
    Fault("stderr full", acts.nothing, UNTOUCHED, (WHOLE,), before="exec 2>/dev/full"),
    Fault("no descriptors", acts.nothing, UNTOUCHED, (WHOLE,), before="exec <&- >&- 2>&-"),
    Fault("16 open files", acts.nothing, UNJUDGED, (WHOLE,), before="ulimit -n 16"),
    Fault("files of 10 MB", acts.nothing, UNJUDGED, (WHOLE,), before="ulimit -f 20000"),  # in 512 bytes: dash(1)
    Fault("800 MB of addresses", acts.nothing, UNJUDGED, (WHOLE,), before="ulimit -v 800000"),
    Fault("8 rigs on one cache", acts.crowd, UNTOUCHED, ("prepare",)),
    Fault(
        "locale C",
        acts.nothing,
        UNTOUCHED,
        (WHOLE,),
        setting=_says(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        quick=(WHOLE,),
    ),
    Fault("TERM=dumb", acts.nothing, UNTOUCHED, (WHOLE,), setting=_says(TERM="dumb")),
    Fault("no HOME", acts.nothing, UNTOUCHED, (WHOLE,), setting=_says(HOME="/nonexistent")),
    Fault("80 columns", acts.nothing, UNTOUCHED, (WHOLE,), setting=_says(COLUMNS="80", LINES="24")),
)
FAULTS = (*PHASED, *TEMPLATES, *MISBEHAVING, *UNFIT, *SURROUNDINGS)
