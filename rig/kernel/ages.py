"""What a kernel can't do yet, by its release. Every such bound of the rig's is here, with its source. Pure."""

from __future__ import annotations

import re

Release = tuple[int, int, int]

# glibc 2.26 and newer, static programs too, are built for at least this kernel on x86 (NEWS of 2.26: --enable-kernel);
# before it they end with "kernel too old", or crash.
GLIBC: Release = (3, 2, 0)
# crashkernel=SIZE finds its own place ("x86: Find offset for crashkernel reservation automatically", Bernhard Walle,
# June 2008); before, it reserves nothing without @OFFSET.
CRASHKERNEL_PLACED: Release = (2, 6, 27)
# struct pt_regs of i386 (asm/ptrace.h): the selectors between es and orig_ax, in kernels before each release. The one
# that the kernel uses itself came first (f95d47caae53, 464d1a78fbf8), the other one last (ccbeed3a0590).
PT_REGS_SELECTORS: tuple[tuple[Release, str], ...] = (((2, 6, 20), ""), ((2, 6, 21), "gs"), ((2, 6, 30), "fs"))
PT_REGS_ALL_SELECTORS = "fs gs"
# The entry code of i386 completes the registers of an exception in the kernel, for which the CPU pushes neither ESP nor
# SS (3c88c692c287, "x86/stackframe/32: Provide consistent pt_regs"); before, the stack goes on where they would be.
PT_REGS_WHOLE: Release = (5, 3, 0)
# The first per-CPU chunk, and the kernel's line about it, which tells how large it is (mm/percpu.c): before, nothing
# tells where per-CPU data lie.
PER_CPU_TOLD: Release = (2, 6, 30)
# The transition's page tables are allocated with the image (i386: 92be3d6bdf2c, x86_64: f5deb79679af); before, from
# 2.6.19 on, they were variables of the kernel's.
TABLES_ALLOCATED: Release = (2, 6, 30)


def crashes_into_itself(release: str, *, relocatable: bool) -> bool:
    """Whether a kernel can be relied on as its own crash kernel.

    One that isn't relocatable runs only where it was linked to, which is where the first one lies. One that is, but
    old, may not read the memory map that kexec-tools hands over (kexec(8), --pass-memmap-cmdline).
    """
    return relocatable and not older(release, GLIBC)


def needs_musl(release: str) -> bool:
    """Whether the distribution's programs don't run on a kernel: it gets the userland of rig/guest/legacy.py."""
    return older(release, GLIBC)


def allocates_tables(release: str) -> bool:
    """Whether a kernel's struct kimage points to the transition's page tables: they are variables in older ones."""
    return not older(release, TABLES_ALLOCATED)


def numbers(release: str) -> Release | None:
    """`uname -r` as numbers to compare: 2.6.18-6-686 -> (2, 6, 18). None when it doesn't begin with a version."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def older(release: str, bound: Release) -> bool:
    """Whether a kernel is older than a bound; a release that can't be read is taken for a newer one."""
    read = numbers(release)
    return read is not None and read < bound
