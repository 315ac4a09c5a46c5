"""The rig judged by its own sabotages: what each should have been told by, and what was. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters
from textwrap import wrap
from typing import Any

from rig.catalog import Catalogue, find
from rig.errors import RequestError
from rig.loads import kind
from rig.model import Guest, LoadKind, RunPlan, RunResult, Scenario, Verdict
from rig.plan import plan

QUICK_GUEST = "x86_64"
# What a cell of the table says, by (should the check fail?, its verdict); whatever is not here was not judged.
SIGNS = {
    (True, Verdict.FAIL): "F",
    (False, Verdict.PASS): ".",
    (True, Verdict.PASS): "!",
    (False, Verdict.FAIL): "X",
}
WRAPPED: dict[str, Any] = {"width": 80, "subsequent_indent": "    ", "break_long_words": False}
UNJUDGED, NOT_ASKED = "-", " "
LEGEND = (
    "F failed, as it should   . passed   ! passed, should have failed   X failed, should have passed   - not judged"
)


@dataclass(frozen=True)
class Row:
    """One sabotage on one guest. expected, seen: names of failed checks. entries: page-directory entries named."""

    id: str
    expected: tuple[str, ...]
    seen: tuple[str, ...]
    entries: tuple[int, ...]
    checks: Mapping[str, Verdict]
    verdict: Verdict
    surprise: str

    @property
    def caught(self) -> bool:
        """By exactly the checks that should, naming exactly what was done."""
        return not self.surprise


# ---------------------------------------------------------------- what is run


def sabotages(catalogue: Catalogue) -> list[Scenario]:
    """The scenarios that do damage on purpose: by a module, through the debugger, or by a kernel that misbehaves.

    Also those that expect a failure without it: where nothing is loaded, there is nothing to damage, and the kernel is
    told to end otherwise; kernels that can't come back from a kexec jump fail by themselves.
    """
    return [
        scenario
        for scenario in catalogue.scenarios.values()
        if scenario.sabotage
        or (scenario.kernel and catalogue.kernels[scenario.kernel].patch)
        or (scenario.expect is Verdict.FAIL and kind(scenario.load) in (LoadKind.NONE, LoadKind.JUMP))
    ]


def plans(catalogue: Catalogue, guests: Sequence[str] = (), quick: bool = False) -> list[RunPlan]:
    """Every sabotage on the guests it lists. guests: only on those named, or what its own guests have in common with
    them: architecture and paging.

    quick: no kernels that have to be built, no other ways of loading than the usual, and one guest unless others are
    named.

    :raise RequestError: an unknown guest, or nothing is left to run
    """
    named = [find(catalogue.guests, name, "guest") for name in guests or ((QUICK_GUEST,) if quick else ())]
    chosen: list[RunPlan] = []
    for scenario in sabotages(catalogue):
        built = scenario.kernel and catalogue.kernels[scenario.kernel].source
        if quick and (built or scenario.load != Scenario.load):
            continue
        own = [catalogue.guests[name] for name in scenario.guests]
        where = list(dict.fromkeys(g.name for one in named for g in _like(one, own))) if named else scenario.guests
        if where:
            chosen += plan(catalogue, [scenario.name], where)
    if not chosen:
        raise RequestError(f"no sabotage runs on {', '.join(guests)}", hint="`rig list scenarios` has them all")
    return chosen


def _like(wanted: Guest, own: Sequence[Guest]) -> list[Guest]:
    """The guest itself when it is among them, else the first that pages like it."""
    same = [guest for guest in own if guest.name == wanted.name]
    alike = [guest for guest in own if (guest.arch, guest.paging) == (wanted.arch, wanted.paging)]
    return same or alike[:1]


# ---------------------------------------------------------------- what came of it


def rows(results: Iterable[RunResult]) -> list[Row]:
    return [
        Row(
            id=result.id,
            expected=result.expect_failed,
            seen=tuple(c.name for c in result.checks if c.verdict is Verdict.FAIL),
            entries=_entries(result),
            checks={c.name: c.verdict for c in result.checks},
            verdict=result.verdict,
            surprise=result.surprise,
        )
        for result in results
    ]


def _entries(result: RunResult) -> tuple[int, ...]:
    changed = [c.figures.get("entries_changed", ()) for c in result.checks if c.name == "pgd-survives"]
    return tuple(sorted({entry["index"] for entries in changed for entry in entries}))


def unproved(table: Sequence[Row], registry: Iterable[str]) -> list[str]:
    """The checks that no sabotage made fail where it should: nothing shows that they can."""
    proved = {name for row in table if row.caught for name in row.expected}
    return [name for name in registry if name not in proved]


def lines(table: Sequence[Row], registry: Iterable[str]) -> list[str]:
    """The table for people: a row a sabotage, a column a check; then what went wrong, and what it comes to."""
    letters = dict(zip(registry, ascii_letters, strict=False))
    labels = _labels(table)
    width = max(map(len, labels))
    out = [f"{'':{width}}  {' '.join(letters.values())}"]
    for label, row in zip(labels, table, strict=True):
        out.append(f"{label:{width}}  {' '.join(_cell(row, name) for name in letters)}".rstrip())
    out += ["", *(f"{letter} {name}" for name, letter in letters.items()), "", *LEGEND.split("   ")]
    for row in table:
        if row.surprise:
            expected = f"{', '.join(row.expected)} should fail" if row.expected else "nothing should fail"
            mark = "ERROR" if row.verdict is Verdict.ERROR else "MISSED"
            out += ["", *wrap(f"{mark}  {row.id}: {expected}", **WRAPPED), *wrap(f"  {row.surprise}", **WRAPPED)]
    if names := unproved(table, letters):
        out += ["", *wrap(f"failed by none of these sabotages: {', '.join(names)}", **WRAPPED)]
    caught = sum(row.caught for row in table)
    out += ["", f"{caught} of {len(table)} sabotages were caught by exactly the checks that should catch them"]
    return out


def _labels(table: Sequence[Row]) -> list[str]:
    """SCENARIO@GUEST, which fits into a terminal; the whole ids when several kernels are among them."""
    short = [row.id.partition("/")[0] for row in table]
    return short if len(set(short)) == len(short) else [row.id for row in table]


def _cell(row: Row, check: str) -> str:
    if check not in row.checks:
        return NOT_ASKED
    return SIGNS.get((check in row.expected, row.checks[check]), UNJUDGED)
