"""EFI's system table and its array of configuration tables, which the next kernel looks up by their addresses."""

from __future__ import annotations

import re
import struct

from rig.errors import EvidenceError, GuestError
from rig.memory.physical import Memory, OutsideMemory

SIGNATURE = b"IBI SYST"  # UEFI specification, "EFI Table Header"
SYSTEM_TABLE = 120  # bytes; efi_system_table_64_t and efi_config_table_64_t, include/linux/efi.h
CONFIGURATION_TABLE = 24  # bytes of each
_COUNT = 104  # offset in the system table; what follows it, their address, is a virtual one by then
_WORD = re.compile(r"(0x)?[0-9a-f]{1,16}", re.ASCII)
_MOST = 1024  # configuration tables: more are none

# /sys/kernel/boot_params/data, struct efi_info (arch/x86/include/uapi/asm/bootparam.h): 32 bytes from 0x1c0.
COMMAND = (
    "[ -e /sys/firmware/efi/config_table ] && cat /sys/firmware/efi/config_table"
    " && od -An -tx4 -j 448 -N 32 /sys/kernel/boot_params/data"
)


def parse(text: str) -> tuple[int, int] | None:
    """What COMMAND prints -> physical addresses of system table and configuration tables; None without 64-bit EFI.

    :raise GuestError: it is something else
    """
    words = text.split()
    if not all(_WORD.fullmatch(word) for word in words):
        raise GuestError(f"the guest tells of EFI's tables what is none: {text[:200]!r}")
    config, *info = [int(word, 16) for word in words] or [0]
    if len(info) != 8 or info[0].to_bytes(4, "little") != b"EL64":
        return None
    return info[6] << 32 | info[1], config


def spans(memory: Memory, system: int, config: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(physical address, bytes) of the system table and of all configuration tables. EvidenceError: there is none."""
    try:
        table = memory.read(system, SYSTEM_TABLE)
    except OutsideMemory as problem:
        raise EvidenceError(f"EFI's system table can't be read: {problem}") from problem
    (count,) = struct.unpack_from("<Q", table, _COUNT)
    if not table.startswith(SIGNATURE) or count > _MOST:
        raise EvidenceError(f"there is no EFI system table at {system:#x}, where the kernel says it is")
    return (system, SYSTEM_TABLE), (config, count * CONFIGURATION_TABLE)
