"""Forged results and evidence: what a run could have left, with a guest that printed hostile bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rig.evidence.reader import Evidence
from rig.model import (
    CheckResult,
    CpuState,
    Failure,
    KernelIdentity,
    Phase,
    RunResult,
    Segment,
    Verdict,
)

HOSTILE = "<script>alert(1)</script> \x1b[2J\x1b]0;title\x07 [bold red]markup[/] \u202egnp.exe {{ 7*7 }} \x00 &amp;"

LOW_HALF = [
    {
        "index": index,
        "before": 0x8000_0000_1279_2067 + (index << 12),
        "after": 0x1FE9_3063 if index == 0 else 0,
        "checkpoint": "handover",
    }
    for index in range(256)
]


def pgd_figures(**more: Any) -> dict[str, Any]:
    return {
        "mode": "4-level",
        "cr3": 0x1FEF0000,
        "root": 0x1FEF0000,
        "bytes_compared": 4096,
        "bytes_changed": 0,
        "ad_bits": 1,
        "entries_changed": [],
        "compared": [
            {"checkpoint": "machine-kexec", "bytes_changed": 0},
            {"checkpoint": "handover", "bytes_changed": 0},
            {"checkpoint": "crash-kernel", "bytes_changed": 0},
        ],
        "vmcore": {"physical": 0x1FEF0000, "bytes_changed": 0, "via": "ssh"},
    } | more


LEDGER = CheckResult(
    "memory-accounted",
    Verdict.PASS,
    "642 bytes changed in 13 pages outside the crash region, every one has an owner",
    {
        "bytes_changed": 642,
        "unaccounted": 0,
        "intervals": [
            {"from": "panic", "to": "machine-kexec", "bytes": 400, "pages": 8},
            {"from": "machine-kexec", "to": "handover", "bytes": 78, "pages": 2},
            {"from": "handover", "to": "crash-kernel", "bytes": 164, "pages": 3},
        ],
        "owners": [
            {
                "owner": "crash notes",
                "bytes": 336,
                "pages": 1,
                "interval": "panic to machine-kexec",
                "addresses": [0x1F391000],
            },
            {
                "owner": "kernel data and bss",
                "bytes": 142,
                "pages": 9,
                "interval": "panic to handover",
                "addresses": [0x1117000 + 0x1000 * n for n in range(9)],
            },
            {
                "owner": "low memory below 1 MiB",
                "bytes": 164,
                "pages": 3,
                "interval": "handover to crash-kernel",
                "addresses": [0x9C000, 0x9D000, 0xB8000],
            },
        ],
    },
)

BOOTS = CheckResult(
    "crash-kernel-boots",
    Verdict.PASS,
    "6.1.0-56-amd64 reached user space 6.3 s after the hand-over, /proc/vmcore is there",
    {"release": "6.1.0-56-amd64", "seconds": 6.3},
)

REGISTERS = CheckResult(
    "vmcore-registers",
    Verdict.PASS,
    "NT_PRSTATUS of CPU 0 agrees with its state at panic; 1 note for 1 CPU",
    {"cpus": [{"cpu": 0, "agrees": True}]},
)

SURVIVED = CheckResult("pgd-survives", Verdict.PASS, "pgd at 0x1fef0000: 0 of 4096 bytes changed", pgd_figures())

OVERWRITTEN = CheckResult(
    "pgd-survives",
    Verdict.FAIL,
    "pgd at 0x1fef0000: 2048 of 4096 bytes changed, in 256 entries",
    pgd_figures(
        bytes_changed=2048,
        entries_changed=LOW_HALF,
        writer="overwrite+0x1c [overwrite_pgd]",
        writers=[{"symbol": "overwrite+0x1c [overwrite_pgd]", "called_from": ["machine_kexec+0x7b"]}],
        compared=[
            {"checkpoint": "machine-kexec", "bytes_changed": 0},
            {"checkpoint": "handover", "bytes_changed": 2048},
            {"checkpoint": "crash-kernel", "bytes_changed": 2048},
        ],
        vmcore={"physical": 0x1FEF0000, "bytes_changed": 2048, "via": "console"},
    ),
)

HUNG = Failure(
    kind="GuestHung",
    message="the guest printed nothing for 180 s and its shell never came",
    phase="boot",
    hint="raise --deadline, or look whether the kernel has CONFIG_SERIAL_8250_CONSOLE",
    console="[    0.000000] Linux version 6.1.0-56-amd64\n" + HOSTILE + "\nVFS: Unable to mount root fs\n",
    cpu_state="CPU#0\nRIP=ffffffff980592fa HLT=1",
)


def result(verdict: Verdict, checks: Sequence[CheckResult], **more: Any) -> RunResult:
    values: dict[str, Any] = {
        "id": "panic@x86_64/debian-6.1",
        "scenario": "panic",
        "guest": "x86_64",
        "kernel": KernelIdentity("debian-6.1", "6.1.0-56-amd64", "ab" * 32),
        "crash_kernel": KernelIdentity("debian-6.1", "6.1.0-56-amd64", "ab" * 32),
        "expect": Verdict.PASS,
        "verdict": verdict,
        "checks": tuple(checks),
        "phases": (
            Phase("prepare", 0.42),
            Phase("boot", 6.51),
            Phase("arm", 1.72),
            Phase("panic", 0.05),
            Phase("capture", 0.71),
            Phase("handover", 0.01),
            Phase("crash-kernel", 6.32),
            Phase("fetch", 1.2),
        ),
        "environment": {
            "qemu": "7.2.22",
            "accel": "tcg",
            "rig": "0.1",
            "argv": [
                *("qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nodefaults"),
                *("-append", "console=ttyS0 crashkernel=160M panic=-1", "-kernel", "vmlinuz"),
            ],
        },
    }
    return RunResult(**(values | more))


PASSED = result(Verdict.PASS, [SURVIVED, BOOTS, LEDGER, REGISTERS])
FAILED = result(Verdict.FAIL, [OVERWRITTEN, BOOTS, LEDGER, REGISTERS], surprise="pgd-survives failed, but should pass")
SABOTAGED = result(
    Verdict.FAIL,
    [OVERWRITTEN, BOOTS, LEDGER, REGISTERS],
    id="overwritten-pgd@x86_64/debian-6.1",
    scenario="overwritten-pgd",
    expect=Verdict.FAIL,
    expect_failed=("pgd-survives",),
)
UNNOTICED = result(
    Verdict.PASS,
    [SURVIVED, BOOTS],
    id="overwritten-pgd@x86_64/debian-6.1",
    expect=Verdict.FAIL,
    expect_failed=("pgd-survives",),
    surprise="pgd-survives passed, but had to fail: the sabotage went unnoticed",
)
BROKEN_OFF = result(
    Verdict.ERROR, [], error=HUNG, surprise="could not judge", phases=(Phase("boot", 180.0),), environment={}
)


def cpu(number: int) -> CpuState:
    flat = Segment(0x18, 0, 0xFFFFFFFF, 0xCF9300)
    return CpuState(
        cpu=number,
        general={
            "rip": 0xFFFFFFFF845740A0,
            "rflags": 0x82,
            "rsp": 0xFFFFD32440013C68,
            "rdi": 0xFFFF8A0642530800,
        },
        cr0=0x80050033,
        cr2=0x7F5A0C1F2000,
        cr3=0x1FEF0000,
        cr4=0x6F0,
        efer=0xD01,
        gdt_base=0xFFFFFE0000001000,
        gdt_limit=0x7F,
        idt_base=0xFFFFFE0000000000,
        idt_limit=0xFFF,
        segments={"cs": Segment(0x10, 0, 0xFFFFFFFF, 0xAF9B00), "ss": flat, "ds": flat},
    )


@dataclass(eq=False)
class ForgedEvidence(Evidence):
    """What needs no files, from values; all else of it is missing."""

    text: str = f"[    0.000000] Linux version 6.1.0-56-amd64\r\n{HOSTILE}\r\nKernel panic - not syncing\r\n"
    cpus_at: Mapping[str, tuple[CpuState, ...]] = field(
        default_factory=lambda: {"panic": (cpu(0), cpu(1)), "handover": (cpu(0),)}
    )
    listing: Sequence[tuple[str, int]] = (
        ("result.json", 5120),
        ("console.log", 24_000),
        ("memory/pages.zst", 3_400_000),
        ('odd "name" <b>#1', 3),
        ("javascript:alert(1)", 3),
    )
    path: Path = Path("no-such-run")

    def console(self) -> bytes:
        return self.text.encode()

    def registers(self) -> Mapping[str, tuple[CpuState, ...]]:
        return self.cpus_at

    def files(self) -> list[tuple[str, int]]:
        return list(self.listing)
