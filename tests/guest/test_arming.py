"""What the first kernel says about itself."""

from __future__ import annotations

import errno
import gzip
import re
import subprocess
from pathlib import Path
from typing import cast

import pytest

from rig.errors import GuestCommandFailed, NotOffered, UnsuitableKernel
from rig.facts import PerCpu
from rig.guest.arming import (
    TRIGGER,
    Self,
    _crash_region,
    _explain,
    all_symbols,
    arm,
    parse_crash_notes,
    parse_iomem,
    parse_per_cpu,
    parse_sections,
    parse_vmcoreinfo,
    prepare_trigger,
)
from rig.guest.cache import Cache
from rig.kernel import symbols
from rig.loads import CODE, LOADS
from rig.model import CRASH_KERNEL, Range
from rig.triggers import TRIGGERS, Trigger
from rig.vm.deadline import Deadline
from rig.vm.shell import Shell

IOMEM = """\
00001000-0009fbff : System RAM
00100000-1ffdffff : System RAM
  0aa00000-0b801d31 : Kernel code
  15000000-1effffff : Crash kernel
not a line of it
"""


def test_iomem_keeps_depth_and_order() -> None:
    ranges = parse_iomem(IOMEM)
    assert [(r.name, r.depth) for r in ranges] == [
        ("System RAM", 0),
        ("System RAM", 0),
        ("Kernel code", 1),
        ("Crash kernel", 1),
    ]
    assert ranges[3] == Range(0x15000000, 0x1EFFFFFF, "Crash kernel", 1)
    assert ranges[3].size == 160 << 20


def test_of_two_reservations_images_go_to_the_high_one() -> None:
    low, high = Range(0xAE000000, 0xBDFFFFFF, CRASH_KERNEL, 1), Range(0x130000000, 0x139FFFFFF, CRASH_KERNEL, 1)
    assert _crash_region((low, high), "") == high


def test_vmcoreinfo_is_two_hex_words_or_nothing() -> None:
    assert parse_vmcoreinfo("0x0000000004b2c000 1024\n") == (0x4B2C000, 0x1024)
    assert parse_vmcoreinfo("4b2c000 1000") == (0x4B2C000, 0x1000)
    assert parse_vmcoreinfo("") is None


class ScriptedShell:
    """Answers commands by what they begin with; "!" before an answer means that the command fails."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def run(self, command: str, _deadline: Deadline) -> str:
        self.asked.append(command)
        answer = next(text for start, text in self.answers.items() if command.startswith(start))
        if answer.startswith("!"):
            raise GuestCommandFailed(command, 1, answer[1:])
        return answer


def armed(linked_at: tuple[int, int] | None = None, **changes: str) -> Self:
    """As 2.6.18 answers, but for the changes."""
    told = {
        "missing": "",
        "iomem": "00100000-1ffdffff : System RAM\n  00100000-002e5fff : Kernel code\n"
        "  01000000-04ffffff : Crash kernel\n",
        "kallsyms": "c0110f30 T machine_kexec\nc013c070 T crash_kexec\n",
        "notes": "0 1f3d2c00 1024\n",
        "vmcoreinfo": "",
        "efi": "",
        "log": "",
        "status": "0\n",
        "kexec": "",
        "loaded": "1\n",
    }
    answer = "".join(f"@{name}\n{text}" for name, text in (told | changes).items())
    shell = ScriptedShell({"": answer})
    known = arm(cast(Shell, shell), LOADS["kexec_load"], "panic=-1", Deadline.after(1, "nothing"), linked_at)
    assert ("--pass-memmap-cmdline" in shell.asked[0]) == (linked_at is not None)
    return known


def test_an_old_kernel_says_less_of_itself() -> None:
    known = armed()
    assert (known.vmcoreinfo, known.per_cpu, known.efi) == (None, None, None)
    assert known.crash_notes == ((0x1F3D2C00, 1024),)
    assert known.crash_region == Range(0x1000000, 0x4FFFFFF, CRASH_KERNEL, 1)
    assert armed(loaded="") == known  # before 2.6.18 there is no file that says so


def test_what_the_kernel_says_of_the_image_counts_more_than_what_kexec_says() -> None:
    with pytest.raises(GuestCommandFailed, match="kexec was content"):
        armed(loaded="0\n")


def test_a_kernel_without_kexec_is_told_apart_from_one_without_memory_for_it() -> None:
    nothing = "00100000-1ffdffff : System RAM\n"
    with pytest.raises(UnsuitableKernel, match="shows no machine_kexec"):
        armed(kallsyms="", iomem=nothing)
    with pytest.raises(UnsuitableKernel, match="reserved no memory"):
        armed(iomem=nothing)


def test_a_crash_kernel_with_a_place_of_its_own_must_fit_into_what_is_reserved() -> None:
    assert armed(linked_at=(0x1000000, 0x5000000)) == armed()
    with pytest.raises(UnsuitableKernel, match=r"linked to 0x1000000-0x5000000, outside .* 0x1000000-0x4ffffff"):
        armed(linked_at=(0x1000000, 0x5000001))


def make_ready(trigger: Trigger, **answers: str) -> ScriptedShell:
    shell = ScriptedShell({"echo": answers.get("echo", "1\n"), "insmod": "", "cat": answers.get("cat", "")})
    prepare_trigger(cast(Shell, shell), trigger, Deadline.after(1, "nothing"))
    return shell


def test_what_a_trigger_needs_is_made_ready_in_order() -> None:
    shell = make_ready(TRIGGERS["bug"], cat="panic \nbug \n")
    assert shell.asked[0].startswith("echo 1 > /proc/sys/kernel/panic_on_oops")
    assert shell.asked[1] == f"insmod {TRIGGER}"


@pytest.mark.parametrize(
    ("name", "answers", "told"),
    [
        ("nmi", {"echo": "!sh: can't create ...: nonexistent directory"}, "no CONFIG_X86_LOCAL_APIC: sh: can't"),
        ("deadlock", {"echo": "0\n"}, "no CONFIG_HARDLOCKUP_DETECTOR: /proc/sys/kernel/hardlockup_panic stays '0'"),
        ("deadlock", {"cat": "deadlock CONFIG_SMP\n"}, "the kernel has no CONFIG_SMP: deadlock does nothing"),
    ],
)
def test_what_a_kernel_lacks_for_a_trigger_is_not_offered(name: str, answers: dict[str, str], told: str) -> None:
    with pytest.raises(NotOffered, match=re.escape(told)):
        make_ready(TRIGGERS[name], **answers)


def explain(words: str, way: str = "kexec_load") -> Exception:
    return _explain(GuestCommandFailed("kexec -p", 255, words), LOADS[way], parse_iomem(IOMEM)[3])


def test_kexecs_words_are_explained_by_config_name() -> None:
    absent = explain("kexec_load failed: Function not implemented")
    assert isinstance(absent, UnsuitableKernel)
    assert "CONFIG_KEXEC=" in absent.hint
    blind = explain("Cannot open /proc/kcore: No such file or directory")
    assert isinstance(blind, UnsuitableKernel)
    assert "CONFIG_PROC_KCORE" in blind.hint
    assert "160 MiB" in str(explain("Could not find a free area of memory of 0x..."))
    other = explain("whatever else")
    assert isinstance(other, GuestCommandFailed)
    assert other.output == "whatever else"


def test_a_system_call_that_the_scenario_is_about_is_not_offered() -> None:
    absent = explain("kexec_file_load failed: Function not implemented", "kexec_file_load")
    assert isinstance(absent, NotOffered)
    assert "CONFIG_KEXEC_FILE" in absent.message


def test_a_kernel_without_kexec_jump_is_not_offered_it() -> None:
    """It takes the flag for an invalid one; so it does for other loads, where EINVAL is not about that."""
    refused = GuestCommandFailed("jump load", errno.EINVAL, "")
    absent = _explain(refused, LOADS["jump"], None)
    assert isinstance(absent, NotOffered)
    assert "CONFIG_KEXEC_JUMP" in absent.message
    assert _explain(refused, LOADS["plain"], None) is refused
    busy = GuestCommandFailed("jump load", errno.EBUSY, "")
    assert _explain(busy, LOADS["jump"], None) is busy


def test_the_image_of_a_jump_goes_over_the_kernels_own_code(tmp_path: Path) -> None:
    iomem = tmp_path / "iomem"
    iomem.write_text(IOMEM)
    line = f"echo {CODE.replace('/proc/iomem', str(iomem))}"
    assert subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout == "0aa00000\n"


def test_sections_may_be_empty() -> None:
    text = "@missing\n@iomem\n0-1 : a\n2-3 : b\n@log\nuser@host\n@loaded\n1\n"
    assert parse_sections(text) == {"missing": "", "iomem": "0-1 : a\n2-3 : b\n", "log": "user@host\n", "loaded": "1\n"}


def test_crash_notes_by_cpu_sizes_are_decimal() -> None:
    assert parse_crash_notes("10 1f000 424\n2 1e000 1024\n") == ((0x1E000, 1024), (0x1F000, 424))
    assert parse_crash_notes("") == ()


def test_the_per_cpu_chunk_in_the_kernels_words() -> None:
    line = "[    0.068413] percpu: Embedded 62 pages/cpu s217088 r8192 d28672 u1048576\n"
    assert parse_per_cpu("setup_percpu: NR_CPUS:8192\n" + line) == PerCpu(217088, 62 * 4096, 1048576)
    assert parse_per_cpu("nothing of it") is None


class Kallsyms:
    """A guest that is asked for all of its symbols, and counts how often."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.asked = 0

    def run(self, command: str, _deadline: Deadline) -> str:
        return "1" if command.startswith("wc") else ""

    def read_file(self, path: str, at: int, size: int, deadline: Deadline) -> bytes:
        self.asked += 1
        return gzip.compress(f"{self.base:x} T _text\n{self.base + 0x100:x} T machine_kexec\n".encode())


def test_all_symbols_are_read_once_and_again_when_the_cache_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    cache, guest, deadline = Cache(tmp_path, lambda _: None), Kallsyms(0xC1000000), Deadline.after(1, "nothing")

    def ask(base: int) -> dict[int, str]:
        running = {"machine_kexec": base + 0x100}
        return dict(all_symbols(cast(Shell, guest), (cache, "abc"), running, deadline, notes.append))

    assert ask(0xC1000000) == {0xC1000000: "_text", 0xC1000100: "machine_kexec"}
    assert ask(0xC5000000) == {0xC5000000: "_text", 0xC5000100: "machine_kexec"}
    assert guest.asked == len(notes) == 1
    place = f"kallsyms/abc.{symbols.MARKS}.table.zst"
    (tmp_path / place).write_bytes(b"torn")
    assert ask(0xC5000000) == {0xC5000000: "_text", 0xC5000100: "machine_kexec"}
    assert guest.asked == 2
    assert f"{place} is damaged" in notes[1]
    monkeypatch.setattr(symbols, "MARKS", "others")
    ask(0xC5000000)
    assert guest.asked == 3
