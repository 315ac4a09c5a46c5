"""The matrix split between machines. Pure, but for reading the timings that the catalogue ships.

Every machine splits for itself, so the split must not depend on the machine: the times are those of the catalogue, not
what cells took here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from rig import catalog
from rig.errors import CatalogueError, RequestError
from rig.matrix import FOREVER, estimates
from rig.model import RunPlan

TIMINGS = "scenarios/selections/timings.json"  # what `rig matrix '*' --plan --json` printed on one machine
Build = tuple[str, ...]  # source package, its suite, flavour, fragments: what is built before any patched kernel of it
_ANEW = f"make it anew: rig matrix '*' --plan --json > {TIMINGS}"


class _Cell(msgspec.Struct):
    id: str
    seconds: float | None
    measured: bool


class _Timings(msgspec.Struct):
    cells: list[_Cell]


def shipped(path: Path | None = None) -> dict[str, float]:
    """Seconds by the id of the cell, of those that were measured. path: default the rig's own.

    :raise CatalogueError: the file is not what it must be
    """
    path = path or catalog.roots()[0] / TIMINGS
    try:
        timings = msgspec.json.decode(path.read_bytes(), type=_Timings)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise CatalogueError(f"{path}: {problem}", hint=_ANEW) from problem
    known = {cell.id: cell.seconds for cell in timings.cells if cell.measured and cell.seconds is not None}
    if impossible := [cell for cell, seconds in known.items() if not 0 <= seconds < FOREVER]:
        raise CatalogueError(f"{path}: {impossible[0]}: {known[impossible[0]]} seconds", hint=_ANEW)
    return known


def split(plans: Sequence[RunPlan], count: int, seconds: Mapping[str, float]) -> list[list[RunPlan]]:
    """`count` shards, each in the order of `plans`; every plan is in exactly one. seconds: by id.

    Longest first, each to the shard that has the least until then: at most 4/3 of the best there is (Graham, "Bounds on
    multiprocessing timing anomalies", 1969). Kernels that are built from the same source for the same flavour stay
    together, however long they take: building takes longer than running.

    :raise RequestError: there is less to split than shards
    """
    expected = estimates(plans, {plan.slug: seconds[plan.id] for plan in plans if plan.id in seconds})
    lengths = [1.0 if length is None else length for length in expected]  # nothing is known: all alike
    units = sorted(_units(plans), key=lambda unit: (-sum(lengths[n] for n in unit), plans[unit[0]].id))
    if len(units) < count:
        raise RequestError(
            f"{count} shards are more than there is to split: {len(plans)} cells, {len(units)} of them or of their "
            "groups that share a kernel's build",
            hint=f"choose at most {len(units)} shards",
        )
    shards: list[list[int]] = [[] for _ in range(count)]
    for unit in units:
        least = min(shards, key=lambda shard: (sum(lengths[n] for n in shard), len(shard)))
        least += unit
    return [[plans[number] for number in sorted(shard)] for shard in shards]


def _units(plans: Sequence[RunPlan]) -> list[list[int]]:
    """Numbers of plans, in groups that are not to be split: those that share a build, directly or through others."""
    units: list[tuple[set[Build], list[int]]] = []
    for number, plan in enumerate(plans):
        builds, numbers = set(_builds(plan)), [number]
        for unit in [unit for unit in units if unit[0] & builds]:
            units.remove(unit)
            builds |= unit[0]
            numbers = unit[1] + numbers
        units.append((builds, sorted(numbers)))
    return [numbers for _, numbers in units]


def _builds(plan: RunPlan) -> Iterable[Build]:
    """What has to be built for it; nothing for what is skipped."""
    kernels = ((plan.kernel, plan.guest), (plan.crash_kernel, plan.into or plan.guest))
    return [(k.source, k.suite, guest.flavour, *k.config) for k, guest in kernels if k.source and not plan.skip]
