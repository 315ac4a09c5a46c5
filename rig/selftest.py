"""The rig judged by its own sabotages: what each should have been told by, and what was. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rig.catalog import Catalogue
from rig.model import RunResult, Verdict


@dataclass(frozen=True)
class Row:
    """One sabotage on one guest. expected, seen: names of failed checks. entries: page-directory entries named."""

    id: str
    expected: tuple[str, ...]
    seen: tuple[str, ...]
    entries: tuple[int, ...]
    verdict: Verdict
    surprise: str

    @property
    def caught(self) -> bool:
        """By exactly the checks that should, naming exactly what was done."""
        return not self.surprise


def sabotages(catalogue: Catalogue) -> list[str]:
    """The scenarios that do damage on purpose."""
    return [name for name, scenario in catalogue.scenarios.items() if scenario.sabotage]


def rows(results: Iterable[RunResult]) -> list[Row]:
    return [
        Row(
            id=result.id,
            expected=result.expect_failed,
            seen=tuple(c.name for c in result.checks if c.verdict is Verdict.FAIL),
            entries=tuple(
                sorted(
                    {
                        e["index"]
                        for c in result.checks
                        if c.name == "pgd-survives"
                        for e in c.figures["entries_changed"]
                    }
                    if result.verdict is Verdict.FAIL
                    else ()
                )
            ),
            verdict=result.verdict,
            surprise=result.surprise,
        )
        for result in results
    ]


def lines(table: Sequence[Row]) -> list[str]:
    """The table for people, and what it comes to."""
    width = max(len(row.id) for row in table)
    out = []
    for row in table:
        mark = "caught " if row.caught else "ERROR  " if row.verdict is Verdict.ERROR else "MISSED "
        told = f"{', '.join(row.seen) or 'nothing'} failed"
        noun = "entry" if len(row.entries) == 1 else "entries"
        entries = f"; {len(row.entries)} {noun}: {_short(row.entries)}" if row.entries else ""
        out.append(f"{mark} {row.id:{width}}  {told}{entries}")
        if row.surprise:
            out.append(f"        expected {', '.join(row.expected)} to fail; {row.surprise}")
    caught = sum(row.caught for row in table)
    out.append(f"{caught} of {len(table)} sabotages were caught by exactly the checks that should catch them")
    return out


def _short(entries: Sequence[int], most: int = 6) -> str:
    shown = ", ".join(f"[{index}]" for index in entries[:most])
    return shown + (f" ... and {len(entries) - most} more" if len(entries) > most else "")
