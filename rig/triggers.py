"""What makes the kernel panic, or asks it for a plain kexec. One entry a trigger; a scenario names it.

A trigger is a line for the guest's shell. It runs in a shell process of its own whose memory holds the pattern, and
that process itself must die of it, so that the pgd in CR3 is its own. Where another task dies of it, or none,
`own_task` says so, and what is judged by the pattern is left out. What is done from outside the guest is `act`: the
process then waits for it in user mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rig.loads import JUMP
from rig.model import LoadKind

if TYPE_CHECKING:
    from rig.vm.qemu import Vm


@dataclass(frozen=True)
class Setting:
    """A file in /proc or /sys, what is written to it, and what is lacking where it isn't there or refuses."""

    path: str
    value: int
    option: str


@dataclass(frozen=True)
class Keys:
    """Keys pressed together, by QEMU's names (QKeyCode)."""

    names: tuple[str, ...]

    def __call__(self, vm: Vm) -> None:
        vm.qmp.execute("send-key", {"keys": [{"type": "qcode", "data": name} for name in self.names]})


@dataclass(frozen=True)
class Nmi:
    """An NMI at the input LINT1 of every CPU; Linux lets only the boot CPU take it (setup_local_APIC)."""

    def __call__(self, vm: Vm) -> None:
        vm.qmp.execute("inject-nmi")


@dataclass(frozen=True)
class ConsoleInput:
    """Typed on the guest's console."""

    text: str

    def __call__(self, vm: Vm) -> None:
        vm.console.send(self.text.encode())


@dataclass(frozen=True)
class Trigger:
    """command: busybox sh, in the process that holds the pattern; empty: no process has a part in it.

    before: run in it before it makes the pattern. Whatever forks belongs there: a fork leaves the memory of both
    read-only, to be copied when it is written.
    settings: made when the guest is armed. module: the kind that is wanted of the module in kernels/triggers/crash.
    cpus: that the guest must have. own_task: the process that holds the pattern is the one whose page tables are live.
    """

    description: str
    command: str = ""
    before: str = ""
    act: Callable[[Vm], None] | None = None
    settings: tuple[Setting, ...] = ()
    module: str = ""
    cpus: int = 1
    own_task: bool = True
    hypervisor: bool = False  # only where a hypervisor runs the machine
    enters: LoadKind = LoadKind.CRASH  # the kind of image that it enters; others than CRASH without a panic


MODULE = "crash"  # in kernels/triggers
ENTERED = "/tmp/rig-entered"  # what the process that entered an image and came back was told: 0 or the errno
BACK = b"@rig back\n"  # printed by it then
READY = b"@rig ready\n"  # printed by a process that waits for an act

# `echo` is a builtin: the shell process itself makes the system call.
SYSRQ_C = "echo c > /proc/sysrq-trigger"
SPIN = "while :; do :; done"
WAIT = f'printf "@r""ig ready\\n"; {SPIN}'

PANIC_ON_OOPS = Setting("/proc/sys/kernel/panic_on_oops", 1, "kernel.panic_on_oops")
UNKNOWN_NMI = Setting("/proc/sys/kernel/unknown_nmi_panic", 1, "CONFIG_X86_LOCAL_APIC")
LOCKUP = "CONFIG_SOFTLOCKUP_DETECTOR"
HUNG_TASK = "CONFIG_DETECT_HUNG_TASK"


def pin(number: str) -> str:
    """The command that puts the shell process on that CPU, for good."""
    return f"taskset -p -c {number} $$ || exit"


def do(kind: str) -> str:
    """The command that has the module do one of its kinds."""
    return f"echo {kind} > /sys/module/{MODULE}/parameters/act"


def _module(
    description: str,
    kind: str,
    settings: tuple[Setting, ...] = (),
    *,
    then: str = "",
    cpus: int = 1,
    own_task: bool = True,
) -> Trigger:
    """then: what the process does when it is back from the module."""
    command = "; ".join(filter(None, (do(kind), then)))
    return Trigger(description, command, settings=settings, module=kind, cpus=cpus, own_task=own_task)


TRIGGERS: Mapping[str, Trigger] = {
    "sysrq-c": Trigger(
        "sysrq-c by writing to /proc/sysrq-trigger: the kernel calls panic() in the writer's context", SYSRQ_C
    ),
    "sysrq-c-last-cpu": Trigger(
        "as sysrq-c, on the last CPU: the crash kernel is entered, and boots, on one that isn't the boot CPU",
        SYSRQ_C,
        before="read -r online < /sys/devices/system/cpu/online; " + pin("${online##*[-,]}"),
    ),
    **{
        f"sysrq-c-cpu{number}": Trigger(
            f"as sysrq-c, on CPU {number}", SYSRQ_C, before=pin(str(number)), cpus=max(number + 1, 2)
        )
        for number in range(4)
    },
    "sysrq-c-busy-cpus": Trigger(
        "as sysrq-c, while every other CPU runs user code: it must be stopped there",
        SYSRQ_C,
        before=": > /tmp/busy; n=0; for cpu in /sys/devices/system/cpu/cpu[1-9]*; do n=$((n+1)); "
        f'taskset -c ${{cpu##*cpu}} sh -c "echo >> /tmp/busy; {SPIN}" & done; '
        "while [ $(wc -l < /tmp/busy) -lt $n ]; do :; done; " + pin("0"),
        cpus=2,
    ),
    "sysrq-c-loaded": Trigger(
        "as sysrq-c, while two processes compete for the CPU and one fills and frees memory",
        SYSRQ_C,
        before="(while :; do :; done) & (while :; do :; done) & "
        "(while :; do cat /rig/crash-initrd > /tmp/load; : > /tmp/loaded; done) & "
        "while [ ! -e /tmp/loaded ]; do :; done",
    ),
    "sysrq-c-spread": Trigger(
        "as sysrq-c, from a process whose memory is spread over hundreds of page tables",
        f"{do('spread')} && {SYSRQ_C}",
        module="spread",
    ),
    "sysrq-key": Trigger(
        "Alt-SysRq-c on the keyboard: panic() in the keyboard's hard interrupt",
        WAIT,
        before=pin("0"),
        act=Keys(("alt", "sysrq", "c")),
        settings=(Setting("/proc/sys/kernel/sysrq", 1, "CONFIG_MAGIC_SYSRQ"),),
    ),
    "nmi": Trigger(
        "an NMI of no known source, with unknown_nmi_panic: panic() in NMI context",
        WAIT,
        before=pin("0"),
        act=Nmi(),
        settings=(UNKNOWN_NMI,),
    ),
    "panic": _module("panic() called by a module in the context of a process", "panic"),
    "bug": _module("BUG() with panic_on_oops", "bug", settings=(PANIC_ON_OOPS,)),
    "null-write": _module("a write to address 0 with panic_on_oops", "null-write", settings=(PANIC_ON_OOPS,)),
    "warn": _module(
        "WARN() with panic_on_warn",
        "warn",
        settings=(Setting("/proc/sys/kernel/panic_on_warn", 1, "kernel.panic_on_warn"),),
    ),
    "deadlock": _module(
        "a spinlock is taken twice, interrupts off; the hard-lockup watchdog panics in its NMI",
        "deadlock",
        settings=(
            Setting("/proc/sys/kernel/hardlockup_panic", 1, "CONFIG_HARDLOCKUP_DETECTOR"),
            Setting(
                "/proc/sys/kernel/nmi_watchdog", 1, "performance counter of the CPU (PMU) for the hard-lockup watchdog"
            ),
            Setting("/proc/sys/kernel/watchdog_thresh", 1, LOCKUP),
        ),
    ),
    "rcu-stall": _module(
        "a spinlock is taken twice, interrupts off; another CPU notices that RCU stalls, and panics",
        "deadlock",
        settings=(
            Setting("/proc/sys/kernel/panic_on_rcu_stall", 1, "kernel.panic_on_rcu_stall"),
            Setting("/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout", 3, "CONFIG_RCU_STALL_COMMON"),
        ),
        cpus=2,
        own_task=False,
    ),
    "soft-lockup": _module(
        "a kernel loop that lets nothing else run; the soft-lockup watchdog panics in its timer's hard interrupt",
        "soft-lockup",
        settings=(
            Setting("/proc/sys/kernel/softlockup_panic", 1, LOCKUP),
            Setting("/proc/sys/kernel/watchdog_thresh", 1, LOCKUP),
        ),
    ),
    "hung-task": _module(
        "a task that can't be woken for a second; the kernel thread khungtaskd panics",
        "hang",
        settings=(
            Setting("/proc/sys/kernel/hung_task_panic", 1, HUNG_TASK),
            Setting("/proc/sys/kernel/hung_task_timeout_secs", 1, HUNG_TASK),
        ),
        own_task=False,
    ),
    "oom": Trigger(
        "a process takes more memory than there is, with panic_on_oom: panic() in its page fault",
        "while :; do p=$p$p; done",
        settings=(
            Setting("/proc/sys/vm/panic_on_oom", 2, "vm.panic_on_oom"),
            Setting("/proc/sys/vm/overcommit_memory", 1, "vm.overcommit_memory"),
        ),
    ),
    "stack-overflow": _module(
        "the kernel stack overflows: a double fault with VMAP_STACK, else the scheduler finds the stack's end damaged",
        "stack-overflow",
        settings=(PANIC_ON_OOPS,),
    ),
    # On i386 the double fault is a task of its own, which runs on the kernel's page tables (arch/x86/kernel/
    # doublefault_32.c).
    "double-fault": _module(
        "the stack pointer leads nowhere: a double fault", "double-fault", settings=(PANIC_ON_OOPS,), own_task=False
    ),
    "hard-irq": _module("panic() in a hard interrupt, of irq_work", "hard-irq", then=SPIN),
    "softirq": _module("panic() in a softirq, of a tasklet", "softirq"),
    "timer": _module("panic() in the softirq of a timer, while user code runs", "timer", then=SPIN),
    "thread": _module("panic() in a kernel thread, on page tables that it has borrowed", "thread", own_task=False),
    "kexec-e": Trigger(
        "kexec -e: the kernel is asked to enter the image that was loaded", "kexec -e", enters=LoadKind.PLAIN
    ),
    "kexec-f": Trigger(
        "kexec -f: loads the image and enters it, in one command",
        'kexec -f -c /rig/crash-kernel --initrd=/rig/crash-initrd --command-line="$(cat /tmp/rig-cmdline)"',
        enters=LoadKind.PLAIN,
    ),
    "kexec-jump": Trigger(
        "the kernel is asked to enter the image that was loaded, which is to return",
        f'{JUMP} enter; echo $? > {ENTERED}; printf "@r""ig back\\n"',
        enters=LoadKind.JUMP,
    ),
    "xen-key-c": Trigger(
        "C on the console of a Xen hypervisor, after Ctrl-A three times: the hypervisor itself crashes",
        # Three times Ctrl-A switches the console's input from dom0 to the hypervisor (xen-command-line, conswitch).
        act=ConsoleInput("\x01\x01\x01C"),
        own_task=False,
        hypervisor=True,
    ),
}

# 128 x 64 bytes: two pages' worth, so that at least one page is full of it wherever the heap puts it.
PATTERN_REPEATS = 128


def trigger_line(trigger: Trigger, token: str) -> str:
    """The shell line that fills a fresh process's memory with `token`, PATTERN_REPEATS times, and pulls the trigger.

    The token is put together inside the process: neither the line's echo nor its command line holds the pattern.
    """
    half = len(token) // 2
    grow = "; ".join(["p=$p$p"] * (PATTERN_REPEATS.bit_length() - 1))
    before = f"{trigger.before}; " if trigger.before else ""
    return f"sh -c '{before}p={token[:half]}; p=${{p}}{token[half:]}; {grow}; {trigger.command}'"
