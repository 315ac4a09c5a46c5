"""Module parameters, and the record that kernels/controls/damage leaves in memory, from small hand-made blobs."""

import re
import struct
from pathlib import Path

import pytest

from rig.errors import EvidenceError
from rig.facts import Damage
from rig.sabotage import (
    BLOCK_SIZE,
    MAGIC,
    MAX_WORDS,
    PLACES,
    RECORD_SIZE,
    VERSION,
    SabotageRecord,
    fill,
    parameter_complaint,
    parse_record,
)

SOURCES = Path(__file__).parent.parent / "kernels/controls/damage"

# PDE 85 (0x15400000 >> 22) of a 2-level pgd at 0x1f8f3000, overwritten: the odd half of the word at pgd + 4 * 84.
ONE_WORD = bytes.fromhex(
    "52 49 47 53 41 42 4f 54"  # "RIGSABOT"
    "02 00 00 00  01 00 00 00"  # version 2, one word
    "00 30 8f 1f 00 00 00 00"  # pgd at 0x1f8f3000
    "50 31 8f 1f 00 00 00 00"  # address 0x1f8f3150
    "67 10 00 00 00 00 00 00"  # before: entry 84 is 0x1067, entry 85 is 0
    "67 10 00 00 63 00 8f 1f"  # after: entry 85 is 0x1f8f0063
)


def blob(
    *words: tuple[int, int, int],
    magic: bytes = MAGIC,
    version: int = VERSION,
    count: int = -1,
    pgd: int = 0x1000,
) -> bytes:
    """A record padded to its two pages, as it lies in memory."""
    head = struct.pack("<8sIIQ", magic, version, len(words) if count < 0 else count, pgd)
    return (head + b"".join(struct.pack("<QQQ", *word) for word in words)).ljust(RECORD_SIZE, b"\0")


def test_one_word() -> None:
    expected = SabotageRecord(0x1F8F3000, (Damage(0x1F8F3150, 8, 0x1067, 0x1F8F0063_00001067),))
    assert parse_record(ONE_WORD) == expected
    assert parse_record(ONE_WORD + b"\xff" * 100) == expected  # what follows is not read


def test_whole_low_half_fits_with_64_bit_values() -> None:
    words = [(0x12792000 + 8 * i, 0x8000_0000_1279_2067 + (i << 12), 0) for i in range(MAX_WORDS)]
    assert [(w.address, w.before, w.after) for w in parse_record(blob(*words)).words] == words


def test_loaded_but_never_reached() -> None:
    assert parse_record(blob(pgd=0)) == SabotageRecord(0, ())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"", "0 bytes"),
        (ONE_WORD[:23], "23 bytes"),
        (ONE_WORD[:-1], "cut off"),
        (blob(magic=b"\0" * 8), "no sabotage record"),
        (blob(magic=MAGIC[::-1]), "no sabotage record"),
        (blob(version=1), "version 1"),
        (blob(count=MAX_WORDS + 1), "claims 257"),
        (blob((8, 1, 2), pgd=0), "no page directory"),
        (blob((8, 1, 2), (8, 1, 2)), "not ascending"),
        (blob((16, 1, 2), (8, 1, 2)), "not ascending"),
        (blob((12, 1, 2)), "multiples of 8: 0xc"),
        (blob((8, 1, 1)), "did not change: 0x8"),
    ],
)
def test_refuses(bad: bytes, says: str) -> None:
    with pytest.raises(EvidenceError, match=says):
        parse_record(bad)


def test_agrees_with_the_module_sources() -> None:
    """The sizes and the magic that both sides must share, as the C sources have them."""
    source = "".join(path.read_text() for path in sorted(SOURCES.glob("*.[ch]")))

    def define(name: str) -> int:
        found = re.search(rf"^#define {name}\s+(\d+)$", source, re.M)
        assert found, name
        return int(found[1])

    assert define("RECORD_VERSION") == VERSION
    assert define("RECORD_WORDS") == MAX_WORDS
    assert 4096 << define("BLOCK_ORDER") == BLOCK_SIZE
    assert f'"{MAGIC.decode()}"' in source


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ("", ""),
        ("what=pte", ""),
        ("what=user-page pattern={pattern}", ""),
        ("what", "'what' is not a module parameter"),
        ("what=a;reboot", "not a module parameter"),
        ("what=$(reboot)", "not a module parameter"),
        ("note={crash_note}", "{crash_note} stands for nothing; valid: {pattern}, {crash_notes}"),
    ],
)
def test_parameters_are_words_that_a_shell_takes_as_they_stand(parameters: str, says: str) -> None:
    found = parameter_complaint(parameters)
    assert (says in found) if says else not found


def test_places_are_filled_in() -> None:
    assert fill("what=x note={crash_notes}", dict.fromkeys(PLACES, "0x1f80")) == "what=x note=0x1f80"
