"""What a kernel's build tree holds: the bzImage and the vmlinux of one build. The tree is only read."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rig.elf import MAGIC, ElfError
from rig.errors import RequestError
from rig.kernel.build_id import build_id
from rig.kernel.image import BzImage, inspect, parse_config, uncompressed
from rig.model import Arch, Guest, PagingMode

OPTION = "--kernel-tree"
# The x86 directories were one each up to 2.6.23; later trees have links there.
_IMAGES = tuple(Path("arch", arch, "boot/bzImage") for arch in ("x86", "i386", "x86_64"))
_BUILT_WITH = "include/config/auto.conf"  # the configuration that was built, whatever .config says by now


@dataclass(frozen=True)
class BuildTree:
    """bzimage and vmlinux are of one build. pae: None when nothing tells, or for amd64."""

    directory: Path
    bzimage: Path
    vmlinux: Path
    arch: Arch
    pae: bool | None

    def fits(self, guest: Guest) -> bool:
        """Whether the guest is one for such a kernel, as far as that can be told."""
        return guest.arch is self.arch and self.pae in (None, guest.paging is PagingMode.PAE)


def read_tree(directory: Path) -> BuildTree:
    """The finished build in a source tree, or in the directory that O= named.

    :raise RequestError: nothing is built there, or bzImage and vmlinux are of different builds
    :raise UnsuitableKernel: the bzImage is none
    """
    if not directory.is_dir():
        raise RequestError(f"{OPTION}: no such directory: {directory}")
    bzimage = next((found for path in _IMAGES if (found := directory / path).exists()), None)
    if bzimage is None:
        raise RequestError(f"{OPTION}: {directory} has no {_IMAGES[0]}", hint=_what_to_do(directory))
    vmlinux = directory / "vmlinux"
    if not vmlinux.is_file():
        raise RequestError(
            f"{OPTION}: {directory} has no vmlinux",
            hint=f"build it again, or do without: --kernel {bzimage}",
        )
    image = inspect(bzimage)
    if why := _other_build(bzimage, image, vmlinux):
        raise RequestError(
            f"{OPTION}: {vmlinux} and {bzimage} are of different builds: {why}",
            hint=f"`make bzImage` makes both; --kernel {bzimage} does without the vmlinux",
        )
    return BuildTree(directory, bzimage, vmlinux, image.arch, _pae(directory, image))


def require_fit(tree: BuildTree, selected: Sequence[Guest], there: Iterable[Guest]) -> None:
    """Refuse guests that this kernel is not for, and name those it is for.

    selected: those to be run. there: all of the catalogue.

    :raise RequestError: one of the selected does not fit
    """
    unfit = sorted({guest.name for guest in selected if not tree.fits(guest)})
    if not unfit:
        return
    fitting = [guest.name for guest in selected if tree.fits(guest)] or [g.name for g in there if tree.fits(g)]
    kind = f"{tree.arch}{ {None: '', True: ' with PAE', False: ' without PAE'}[tree.pae] }"
    raise RequestError(
        f"{OPTION}: the kernel in {tree.directory} is for {kind}: not for the guest {', '.join(unfit)}",
        hint=f"--guest {' or '.join(dict.fromkeys(fitting))}" if fitting else "no guest is of that kind",
    )


def _what_to_do(directory: Path) -> str:
    if (directory / ".config").exists():
        return "it is configured but not built: `make bzImage`"
    if (directory / "Kconfig").exists():
        return "it is not configured, or built elsewhere: name the directory that was given to make as O="
    return "name a kernel's source tree after `make bzImage`, or the directory given to make as O="


def _pae(directory: Path, image: BzImage) -> bool | None:
    if image.arch is not Arch.I386:
        return None
    built_with = directory / _BUILT_WITH
    config = image.config
    if config is None and built_with.is_file():
        config = parse_config(built_with.read_text(errors="replace"))
    return None if config is None else "CONFIG_X86_PAE" in config


def _other_build(bzimage: Path, image: BzImage, vmlinux: Path) -> str:
    """Why these two are not of one build; empty when nothing says so.

    By the build ID, where the kernel was linked with one: the bzImage's payload is the stripped vmlinux, notes and all.
    Else by what init/version.c puts into both: release, builder, number and time of the build.
    """
    try:
        own = build_id(vmlinux)
    except ElfError as error:
        return f"vmlinux is not an ELF file ({error})"
    payload = uncompressed(bzimage) if own else None
    if own and payload is not None and payload.startswith(MAGIC):
        return "" if own in payload else f"the build ID {own.hex()} of vmlinux is not in bzImage"
    # "6.1.176 (user@host) #7 SMP ..." in the header; the banner of vmlinux has the compiler in between.
    builder, _, version = image.version_string.partition(") ")
    with vmlinux.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        lacking = [text for text in (f"{builder})", version) if content.find(text.encode()) < 0]
    return f"vmlinux does not say {lacking[0]!r}, as bzImage does" if lacking else ""
