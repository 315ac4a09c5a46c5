"""Forged bzImages: a boot header, a version string, a payload."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable

from rig.model import Arch

SETUP = 2 * 512  # one boot sector, one setup sector


def ikconfig(config: str) -> bytes:
    """As kernel/configs.c puts it into the kernel, among other things."""
    return b"text IKCFG_ST text" + b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED" + b"text"


def bzimage(
    version: str,
    *,
    arch: Arch = Arch.AMD64,
    protocol: int = 0x20F,
    config: str | None = None,
    kernel: bytes = b"the kernel itself",
    pack: Callable[[bytes], bytes] = gzip.compress,
) -> bytes:
    """boot.rst's fields at their offsets. config: embedded as IKCONFIG does."""
    payload = pack(kernel if config is None else ikconfig(config))
    code = b"\x90" * 32 + payload + len(kernel).to_bytes(4, "little")  # size_append
    code += bytes(-len(code) % 16)
    head = bytearray(SETUP)
    head[0x1F1] = 1  # setup_sects
    struct.pack_into("<I", head, 0x1F4, len(code) // 16)  # syssize, in paragraphs
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, protocol)
    struct.pack_into("<H", head, 0x20E, 0x300 - 0x200)  # kernel_version, less 0x200
    head[0x211] = 1  # loadflags: LOADED_HIGH
    if protocol >= 0x205:
        head[0x234] = 1  # relocatable_kernel
    if protocol >= 0x208:
        struct.pack_into("<II", head, 0x248, 32, len(payload))  # payload_offset, payload_length
    if protocol >= 0x20C:
        struct.pack_into("<H", head, 0x236, 1 if arch is Arch.AMD64 else 0)  # xloadflags
    text = version.encode() + b"\0"
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head) + code
