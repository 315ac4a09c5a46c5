"""What a bzImage says about itself: boot header, version, embedded configuration. Pure over bytes.

Header fields: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rig.errors import UnsuitableKernel
from rig.kernel import ages
from rig.kernel.payload import Undecodable, decompress
from rig.model import Arch, PagingMode

_SECTOR = 512
# bytes; syssize counts them, rounded up. Up to 2.6.2x the file itself was not filled up (arch/i386/boot/tools/build.c).
_PARAGRAPH = 16
_RELEASE = re.compile(r"[0-9A-Za-z][!-.0-~]{0,63}")  # __NEW_UTS_LEN; no / in it: /lib/modules/RELEASE
_HEADER_END = 0x268  # the fields used here end before it
_LOADED_HIGH = 1 << 0  # loadflags: a bzImage, not a zImage
_XLF_KERNEL_64 = 1 << 0  # xloadflags: has the 64-bit entry point

# What the rig can't do without, and what for. Debian sets all of them.
NEEDED: Mapping[str, str] = {
    "CONFIG_KEXEC": "kexec -p loads the crash kernel by kexec_load(2)",
    "CONFIG_CRASH_DUMP": "the crash kernel runs from the reserved region and keeps the old memory",
    "CONFIG_PROC_VMCORE": "the dump is read from /proc/vmcore",
    "CONFIG_RELOCATABLE": "the crash kernel runs where the region happens to be",
    "CONFIG_KALLSYMS": "breakpoints are set at the symbols of /proc/kallsyms",
    "CONFIG_MAGIC_SYSRQ": "the panic is triggered through /proc/sysrq-trigger",
    "CONFIG_SERIAL_8250_CONSOLE": "the console is a serial line",
    "CONFIG_PRINTK": "the console says what the kernel does",
    "CONFIG_BLK_DEV_INITRD": "the guest's user space is an initramfs",
    "CONFIG_BINFMT_ELF": "programs are ELF files",
    "CONFIG_BINFMT_SCRIPT": "/init is a script",
    "CONFIG_PROC_FS": "/proc",
    "CONFIG_PROC_KCORE": "kexec -p finds the kernel's addresses in /proc/kcore",
    "CONFIG_SYSFS": "/sys/kernel/kexec_crash_loaded",
}

# What the network of a kernel that is its own crash kernel takes (and so SSH), and sabotage modules. Built in: no
# modules are at hand.
WISHED: Mapping[str, str] = {
    "CONFIG_DEVTMPFS": "SSH into the crash kernel",
    "CONFIG_NET": "SSH into the crash kernel",
    "CONFIG_INET": "SSH into the crash kernel",
    "CONFIG_NETDEVICES": "SSH into the crash kernel",
    "CONFIG_PCI": "the network card",
    "CONFIG_8139CP": "the network card",
    "CONFIG_UNIX98_PTYS": "an SSH session with a terminal",
    "CONFIG_MODULES": "sabotage modules",
}

# Options that older kernels had no name for, because they always did it.
_SINCE: Mapping[str, ages.Release] = {"CONFIG_BINFMT_SCRIPT": (3, 10, 0)}
# What only a kernel needs that is entered from the crash region.
_AS_CRASH_KERNEL = ("CONFIG_RELOCATABLE", "CONFIG_CRASH_DUMP", "CONFIG_PROC_VMCORE")


@dataclass(frozen=True)
class BzImage:
    """protocol: boot protocol version, 0x20f for 2.15. sha256: of the whole file, in hex.

    config: CONFIG_NAME -> value as in .config (y, m, 64, "text" with its quotes); None when it can't be told,
    and then config_note says why.
    """

    release: str
    version_string: str
    arch: Arch
    protocol: int
    relocatable: bool
    sha256: str
    config: Mapping[str, str] | None
    config_note: str

    @property
    def crashes_into_itself(self) -> bool:
        """See ages.crashes_into_itself()."""
        return ages.crashes_into_itself(self.release, relocatable=self.relocatable)


def inspect(path: Path, *, read_config: bool = True) -> BzImage:
    """Read a bzImage's header and, unless told not to, its embedded configuration (CONFIG_IKCONFIG).

    Reading the configuration means unpacking the kernel: up to a second or two.

    :raise UnsuitableKernel: not a bzImage, or not a whole one
    """
    try:
        if path.is_dir():
            raise UnsuitableKernel("is a directory", hint="name the bzImage itself")
        if path.exists() and not path.is_file():  # a pipe would never end
            raise UnsuitableKernel("is not a regular file")
        with path.open("rb") as stream:
            head = stream.read(_HEADER_END)
            data = head if _what_else(head) else head + stream.read()  # not all of a disk image
        return parse(data, read_config=read_config)
    except OSError as error:
        raise UnsuitableKernel(f"{path} can't be read: {error.strerror}") from error
    except UnsuitableKernel as error:
        raise UnsuitableKernel(f"{path} {error.message}", hint=error.hint) from error


def uncompressed(path: Path) -> bytes | None:
    """The kernel in a bzImage that inspect() accepts, unpacked; None when that can't be done."""
    data = path.read_bytes()
    (protocol,) = struct.unpack_from("<H", data, 0x206)
    unpacked = _unpacked(data, _setup_size(data), protocol)
    return unpacked if isinstance(unpacked, bytes) else None


def parse(data: bytes, *, read_config: bool = True) -> BzImage:
    """As inspect, over the file's bytes. Messages read on from the file's name."""
    if mistaken := _what_else(data):
        raise UnsuitableKernel(mistaken, hint="a bzImage is wanted: arch/x86/boot/bzImage of the build tree")
    (protocol,) = struct.unpack_from("<H", data, 0x206)
    setup = _setup_size(data)
    (paragraphs,) = struct.unpack_from("<I" if protocol >= 0x204 else "<H", data, 0x1F4)
    if len(data) + _PARAGRAPH <= setup + paragraphs * _PARAGRAPH:
        raise UnsuitableKernel(
            f"is truncated: {len(data)} bytes, its header promises {setup + paragraphs * _PARAGRAPH}",
            hint="copy or build it again",
        )
    version = _version_string(data, setup)
    old = protocol < 0x20C  # no xloadflags: the kernel itself must tell
    vmlinux = _unpacked(data, setup, protocol) if read_config or old else "was not looked for"
    config = embedded_config(vmlinux) if isinstance(vmlinux, bytes) else None
    note = vmlinux if isinstance(vmlinux, str) else "is not embedded (CONFIG_IKCONFIG is not set to y)"
    return BzImage(
        release=release_of(version.split()[0]),
        version_string=version,
        arch=_old_arch(vmlinux, config) if old else _arch(data),
        protocol=protocol,
        relocatable=protocol >= 0x205 and data[0x234] != 0,
        sha256=hashlib.sha256(data).hexdigest(),
        config=config,
        config_note="" if config is not None else f"the configuration {note}",
    )


def release_of(text: str) -> str:
    """What a kernel tells as its release, when that can be one: it names directories (modules, the cache).

    :raise UnsuitableKernel: it can't. The message reads on from the file's name.
    """
    if not _RELEASE.fullmatch(text):
        raise UnsuitableKernel(f"has a release that no kernel can have: {text[:80]!r}")
    return text


def embedded_config(vmlinux: bytes) -> Mapping[str, str] | None:
    """The .config that IKCONFIG put into an uncompressed kernel; None: it didn't (kernel/configs.c)."""
    start = vmlinux.find(b"IKCFG_ST\x1f\x8b")
    end = vmlinux.find(b"IKCFG_ED", start)
    if start < 0 or end < 0:
        return None
    try:
        return parse_config(decompress(vmlinux[start + 8 : end]).decode())
    except (Undecodable, UnicodeDecodeError):
        return None


def parse_config(text: str) -> dict[str, str]:
    """The options that a .config sets. Those that are `not set` are absent, as in the build."""
    return dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))


def missing_options(
    config: Mapping[str, str], arch: Arch, paging: PagingMode, release: str = "", *, relocatable: bool = True
) -> list[str]:
    """What the rig needs and this configuration hasn't, as `CONFIG_NAME`, or `CONFIG_NAME=n` where it must
    be off. release: leaves out the options that are newer than that kernel. A kernel that is never chosen for its own
    crash kernel (ages.crashes_into_itself()) need not have what makes one."""
    itself = ages.crashes_into_itself(release, relocatable=relocatable)
    needed = [name for name in NEEDED if itself or name not in _AS_CRASH_KERNEL]
    missing = [name for name in needed if config.get(name) != "y" and not _older(release, name)]
    if ("CONFIG_X86_64" in config) != (arch is Arch.AMD64):
        missing.append("CONFIG_X86_64" if arch is Arch.AMD64 else "CONFIG_X86_64=n")
    elif arch is Arch.I386 and ("CONFIG_X86_PAE" in config) != (paging is PagingMode.PAE):
        missing.append("CONFIG_X86_PAE" if paging is PagingMode.PAE else "CONFIG_X86_PAE=n")
    return missing


def wished_options(config: Mapping[str, str]) -> list[str]:
    """What the rig can do without, at the price of a feature (see WISHED), and this configuration hasn't."""
    return [name for name in WISHED if config.get(name) != "y"]


def _older(release: str, option: str) -> bool:
    return option in _SINCE and ages.older(release, _SINCE[option])


def _what_else(data: bytes) -> str:
    """Why this can't be a bzImage, empty when it looks like one."""
    if not data:
        return "is empty"
    if data.startswith(b"\x7fELF"):
        return "is an ELF file, a vmlinux perhaps: it can't be booted as it is (it can be given as --vmlinux)"
    if len(data) < _HEADER_END or data[0x202:0x206] != b"HdrS":
        return "is not a bzImage: no boot header (HdrS at 0x202)"
    if not data[0x211] & _LOADED_HIGH:
        return "is not a bzImage: it is to be loaded low (a zImage)"
    return ""


def _setup_size(data: bytes) -> int:
    """Bytes of the real-mode part, boot sector included; setup_sects of 0 means 4."""
    return ((data[0x1F1] or 4) + 1) * _SECTOR


def _version_string(data: bytes, setup: int) -> str:
    (pointer,) = struct.unpack_from("<H", data, 0x20E)
    text = data[pointer + _SECTOR : setup].split(b"\0", 1)[0] if pointer else b""
    version = text.decode(errors="replace").strip()
    if not version:
        raise UnsuitableKernel("doesn't tell its release: its header has no version string")
    return version


def _arch(data: bytes) -> Arch:
    (xloadflags,) = struct.unpack_from("<H", data, 0x236)
    return Arch.AMD64 if xloadflags & _XLF_KERNEL_64 else Arch.I386


def _old_arch(vmlinux: bytes | str, config: Mapping[str, str] | None) -> Arch:
    """Protocols before 2.12: by the configuration, else by utsname's machine field (init/version.c)."""
    if isinstance(vmlinux, str):
        raise UnsuitableKernel(f"doesn't tell its architecture: its boot protocol is old and it {vmlinux}")
    if config is not None:
        return Arch.AMD64 if "CONFIG_X86_64" in config else Arch.I386
    return Arch.AMD64 if b"\0x86_64\0" in vmlinux else Arch.I386


def _unpacked(data: bytes, setup: int, protocol: int) -> bytes | str:
    """The uncompressed kernel, or why it can't be had."""
    if protocol >= 0x208:
        offset, length = struct.unpack_from("<II", data, 0x248)
        payloads = [data[setup + offset : setup + offset + length]]
    else:  # no payload_offset; these were always gzip'd, behind a small decompressor that may have the magic by chance
        payloads = [data[found.start() :] for found in re.finditer(b"\x1f\x8b\x08", data) if found.start() >= setup]
    problem = "no compressed kernel in it"
    for payload in payloads:
        try:
            return decompress(payload)
        except Undecodable as error:
            problem = str(error)
    return f"can't be unpacked: {problem}"
