"""The table says what was found, also when it is wrong, and fits 80 columns."""

from __future__ import annotations

from pathlib import Path

from tests.faults import table
from tests.faults.catalogue import FAULTS
from tests.faults.injection import Outcome, all_faults


def outcomes(*wrong: tuple[str, str]) -> dict[tuple[str, str], Outcome]:
    """Every fault in every phase; some of them wrong."""
    return {
        (fault.name, phase): Outcome(
            fault.name,
            phase,
            "i386",
            min(fault.accepted(phase)),
            *(3, phase, "QEMU ended", "look", 1.5),
            wrong=("fail",) if (fault.name, phase) in wrong else (),
        )
        for fault, phase in all_faults()
    }


def test_names_are_unique_and_every_fault_has_a_phase() -> None:
    assert len({fault.name + phase for fault, phase in all_faults()}) == len(all_faults()) >= 150
    assert all(fault.phases and set(fault.quick) <= set(fault.phases) for fault in FAULTS)


def test_all_of_it_fits_80_columns() -> None:
    lines = table.markdown(outcomes().values()).splitlines()
    assert max(map(len, lines)) <= 80
    assert "0 wrong" in " ".join(lines)
    rows = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    assert len(rows) == len(set(rows)) > 40


def test_what_is_wrong_stands_out() -> None:
    text = table.markdown(outcomes(("QEMU: kill -9", "hand-over")).values())
    assert "| QEMU: kill -9 |  | E | E | E | E | ! | E | E |  |  |" in text
    assert "1 wrong" in text.replace("\n", " ")


def test_what_was_injected_before_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    assert table.read(path) == {}
    table.write(path, outcomes())
    assert table.read(path) == outcomes()
