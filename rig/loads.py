"""How the image that kexec starts is loaded. One entry a way; a scenario names it.

A way is lines for the guest's shell, in which `load ARGUMENT...` runs kexec-tools with the image, its initramfs and its
command line; `word=WORD load ARGUMENT...` adds a word to that line. Its exit status is that of the last line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rig.model import Arch, LoadKind

NOTHING = ":"  # as a command: no image is loaded while the guest is armed
JUMP = "/rig/jump"  # guests/jump
# Where the kernel's own code begins, physical: the image of a kexec jump lies over it while it is away.
CODE = r"$(sed -n 's/^ *\([0-9a-f]*\)-.* : Kernel code$/\1/p' /proc/iomem)"


@dataclass(frozen=True)
class Load:
    """archs: those of kernels that know the system call; empty: all. option: what a kernel without it lacks.

    word: what the image that must run has on its command line besides, to tell it from one that must not.
    """

    description: str
    kind: LoadKind
    command: str  # busybox sh, with the function `load`
    archs: tuple[Arch, ...] = ()
    option: str = "CONFIG_KEXEC"
    word: str = ""


LOADS: Mapping[str, Load] = {
    "kexec_load": Load("kexec -p -c: kexec-tools prepares the image, kexec_load(2)", LoadKind.CRASH, "load -c"),
    "kexec_file_load": Load(
        "kexec -p -s: the kernel prepares the image, kexec_file_load(2)",
        LoadKind.CRASH,
        "load -s",
        # arch/x86/Kconfig: KEXEC_FILE (ARCH_SUPPORTS_KEXEC_FILE) depends on X86_64
        (Arch.AMD64,),
        "CONFIG_KEXEC_FILE",
    ),
    "reload": Load(
        "kexec -p, unloaded again, and loaded once more",
        LoadKind.CRASH,
        "load -c && kexec -p -u && [ $(cat /sys/kernel/kexec_crash_loaded) = 0 ] && load -c",
    ),
    "replace": Load(
        "kexec -p twice: the second image takes the place of the first",
        LoadKind.CRASH,
        "word=rig_image=first load -c && word=rig_image=second load -c",
        word="rig_image=second",
    ),
    "plain": Load("kexec -l -c: plain kexec, kexec-tools prepares the image", LoadKind.PLAIN, "load -c"),
    "plain-file": Load(
        "kexec -l -s: plain kexec, the kernel prepares the image",
        LoadKind.PLAIN,
        "load -s",
        (Arch.AMD64,),
        "CONFIG_KEXEC_FILE",
    ),
    "plain-late": Load("plain kexec that loads when it is asked to execute: kexec -f", LoadKind.PLAIN, NOTHING),
    "jump": Load(
        "kexec jump: an image that returns at once, kexec_load(2) with KEXEC_PRESERVE_CONTEXT",
        LoadKind.JUMP,
        f"{JUMP} load {CODE}",
        option="CONFIG_KEXEC_JUMP",
    ),
    "jump-gdt": Load(
        "kexec jump: before the image returns, it loads the GDT that the kernel had",
        LoadKind.JUMP,
        f"{JUMP} load {CODE} gdt",
        option="CONFIG_KEXEC_JUMP",
    ),
    "none": Load("no image is loaded: the panic must stay a plain one", LoadKind.NONE, NOTHING),
}


def kind(name: str) -> LoadKind:
    """What an image loaded that way is for."""
    return LOADS[name].kind
