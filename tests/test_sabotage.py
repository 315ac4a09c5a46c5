"""The record that kernels/controls/overwrite-pgd leaves in memory, from small hand-made blobs."""

import re
import struct
from pathlib import Path

import pytest

from rig.errors import EvidenceError
from rig.sabotage import (
    BLOCK_SIZE,
    MAGIC,
    MAX_ENTRIES,
    RECORD_SIZE,
    VERSION,
    OverwrittenEntry,
    SabotageRecord,
    parse_record,
)

SOURCE = Path(__file__).parent.parent / "kernels/controls/overwrite-pgd/overwrite-pgd.c"

# As a stock 2-level kernel left it: PDE 85 (0x15400000 >> 22), nothing there before.
ONE_ENTRY = bytes.fromhex(
    "52 49 47 53 41 42 4f 54"  # "RIGSABOT"
    "01 00 00 00  01 00 00 00"  # version 1, one entry
    "00 30 8f 1f 00 00 00 00"  # pgd at 0x1f8f3000
    "55 00 00 00  00 00 00 00"  # index 85
    "00 00 00 00 00 00 00 00"  # before: 0
    "63 00 8f 1f 00 00 00 00"  # after: 0x1f8f0063
)


def blob(
    *entries: tuple[int, int, int],
    magic: bytes = MAGIC,
    version: int = VERSION,
    count: int = -1,
    pgd: int = 0x1000,
) -> bytes:
    """A record padded to its two pages, as it lies in memory."""
    head = struct.pack("<8sIIQ", magic, version, len(entries) if count < 0 else count, pgd)
    body = b"".join(struct.pack("<IIQQ", index, 0, before, after) for index, before, after in entries)
    return (head + body).ljust(RECORD_SIZE, b"\0")


def test_one_entry() -> None:
    expected = SabotageRecord(0x1F8F3000, (OverwrittenEntry(85, 0, 0x1F8F0063),))
    assert parse_record(ONE_ENTRY) == expected
    assert parse_record(ONE_ENTRY).carried_out


def test_what_follows_the_entries_is_not_read() -> None:
    assert parse_record(ONE_ENTRY + b"\xff" * 100) == parse_record(ONE_ENTRY)


def test_whole_low_half_fits_with_64_bit_values() -> None:
    entries = [(index, 0x8000_0000_1279_2067 + (index << 12), 0) for index in range(MAX_ENTRIES)]
    record = parse_record(blob(*entries))
    assert [(e.index, e.before, e.after) for e in record.entries] == entries


def test_loaded_but_never_reached() -> None:
    record = parse_record(blob(pgd=0))
    assert record == SabotageRecord(0, ())
    assert not record.carried_out


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"", "0 bytes"),
        (ONE_ENTRY[:23], "23 bytes"),
        (ONE_ENTRY[:-1], "cut off"),
        (blob(magic=b"\0" * 8), "no sabotage record"),
        (blob(magic=MAGIC[::-1]), "no sabotage record"),
        (blob(version=2), "version 2"),
        (blob(count=MAX_ENTRIES + 1), "claims 257"),
        (blob((0, 1, 2), pgd=0), "no page directory"),
        (blob((5, 1, 2), (5, 1, 2)), "ascending"),
        (blob((5, 1, 2), (4, 1, 2)), "ascending"),
        (blob((5, 1, 1)), "did not change"),
    ],
)
def test_refuses(bad: bytes, says: str) -> None:
    with pytest.raises(EvidenceError, match=says):
        parse_record(bad)


def test_agrees_with_the_module_source() -> None:
    """The sizes and the magic that both sides must share, as the C source has them."""
    source = SOURCE.read_text()

    def define(name: str) -> int:
        found = re.search(rf"^#define {name}\s+(\d+)$", source, re.M)
        assert found, name
        return int(found[1])

    assert define("RECORD_VERSION") == VERSION
    assert define("RECORD_ENTRIES") == MAX_ENTRIES
    assert 4096 << define("BLOCK_ORDER") == BLOCK_SIZE
    assert f'"{MAGIC.decode()}"' in source
