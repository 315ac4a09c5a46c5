"""What was asked for -> RunPlans: names resolved, the matrix of scenarios, guests and kernels unfolded."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rig import loads
from rig.catalog import Catalogue, find, nearest, one_of
from rig.errors import RequestError
from rig.loads import LOADS
from rig.model import Dump, Guest, Kernel, LoadKind, PagingMode, RunPlan, Scenario, Selection, Until
from rig.triggers import TRIGGERS

PLAIN = "plain"  # the way of loading for a plain kexec that there is from a dom0, too: a name of rig/loads.py
# A CPU without it can't run a kernel of that kind (Intel SDM vol. 3, 4.1.1): names of QEMU's -cpu.
NEEDED_FLAG = {PagingMode.PAE: "pae", PagingMode.FOUR_LEVEL: "lm", PagingMode.FIVE_LEVEL: "la57"}


def plan(
    catalogue: Catalogue,
    scenarios: Sequence[str],
    guests: Sequence[str] = (),
    kernel: str | None = None,
    crash_kernel: str | None = None,
    vmlinux: Path | None = None,
) -> list[RunPlan]:
    """One RunPlan for each scenario and guest, in the order asked for.

    guests: names; empty means those that each scenario lists. A guest named here need not be listed there.
    kernel, crash_kernel: a name of the catalogue or the path of an image; None means the scenario's kernel or, when it
    names none, the guest's, and for the crash kernel the scenario's or the same kernel as the first.

    :raise RequestError: an unknown name, a file that isn't there, one image for several guests, or nothing selected
    """
    cells = [
        (scenario, find(catalogue.guests, name, "guest"))
        for scenario in (find(catalogue.scenarios, name, "scenario") for name in dict.fromkeys(scenarios))
        for name in dict.fromkeys(guests or scenario.guests)
    ]
    if not cells:
        raise RequestError("nothing is selected", hint=f"scenarios: {', '.join(catalogue.scenarios)}")
    chosen = _kernel(catalogue, kernel) if kernel is not None else None
    crash = _kernel(catalogue, crash_kernel) if crash_kernel is not None else None
    if vmlinux is not None:
        _require_file(vmlinux, "--vmlinux")
    if vmlinux is not None or any(k is not None and k.image is not None for k in (chosen, crash)):
        _require_one_guest([guest for _, guest in cells])
    return [_cell(catalogue, scenario, guest, chosen, crash, vmlinux) for scenario, guest in cells]


def until_handover(plan: RunPlan, later: Collection[str]) -> RunPlan:
    """The same run without what comes after the hand-over. later: the checks that judge that.

    :raise RequestError: the scenario has no such hand-over, is about what comes later, or takes a dump
    """
    scenario = plan.scenario
    checks = tuple(name for name in scenario.checks if name not in later)
    why = ""
    if loads.kind(scenario.load) not in (LoadKind.CRASH, LoadKind.PLAIN):
        why = "it enters no kernel"
    elif scenario.dump is not Dump.HEADERS:
        why = "it is about the dump, which the crash kernel makes"
    elif missed := sorted(set(scenario.expect_failed) & set(later)):
        why = f"it expects {', '.join(missed)} to fail, which is judged by what comes later"
    elif not checks:
        why = "none of its checks can be judged by then"
    if why:
        raise RequestError(f"{scenario.name} can't end at the hand-over: {why}", hint="leave out --until")
    return replace(plan, scenario=replace(scenario, until=Until.HANDOVER, checks=checks))


def matrix(catalogue: Catalogue, patterns: Sequence[str]) -> list[RunPlan]:
    """The cells that are asked for, each once: by the name of a selection or of a scenario, or by a pattern (fnmatch)
    that runs' ids match, of the cells of all selections and of all scenarios on the guests they list.

    :raise RequestError: a pattern that nothing matches
    """
    chosen: dict[str, RunPlan] = {}
    for pattern in patterns:
        if pattern in catalogue.selections:
            cells = selected(catalogue, catalogue.selections[pattern])
        elif pattern in catalogue.scenarios:
            cells = plan(catalogue, [pattern])
        else:
            cells = [cell for cell in _everything(catalogue) if fnmatch.fnmatchcase(cell.id, pattern)]
        if not cells:
            names = [*catalogue.selections, *catalogue.scenarios]
            raise RequestError(
                f"nothing of the matrix matches {pattern!r}{nearest(pattern, names)}",
                hint=f"a selection ({', '.join(catalogue.selections)}), a scenario, or a pattern like 'panic*@pae/*'",
            )
        chosen |= {cell.id: cell for cell in cells if cell.id not in chosen}
    return list(chosen.values())


def selected(catalogue: Catalogue, selection: Selection) -> list[RunPlan]:
    """The cells of one selection in the order of its file; names that a pattern matches in the catalogue's."""
    chosen: dict[str, RunPlan] = {}
    for cells in selection.cells:
        for name in _matching(cells.scenarios, catalogue.scenarios):
            scenario = catalogue.scenarios[name]
            for guest in _matching(cells.guests, catalogue.guests) or scenario.guests:
                for kernel in _matching(cells.kernels, catalogue.kernels) or (None,):
                    first = catalogue.kernels[kernel] if kernel else None
                    cell = _cell(catalogue, scenario, catalogue.guests[guest], first, None, None)
                    chosen.setdefault(cell.id, cell)
    return list(chosen.values())


def _everything(catalogue: Catalogue) -> list[RunPlan]:
    cells = [cell for selection in catalogue.selections.values() for cell in selected(catalogue, selection)]
    cells += plan(catalogue, list(catalogue.scenarios))
    return list({cell.id: cell for cell in cells}.values())


def _matching(patterns: Sequence[str], names: Iterable[str]) -> tuple[str, ...]:
    table = list(names)
    return tuple(dict.fromkeys(name for pattern in patterns for name in fnmatch.filter(table, pattern)))


def _cell(
    catalogue: Catalogue,
    scenario: Scenario,
    guest: Guest,
    chosen: Kernel | None,
    crash: Kernel | None,
    vmlinux: Path | None,
) -> RunPlan:
    first = chosen or catalogue.kernels[scenario.kernel or guest.kernel]
    if vmlinux is not None:
        first = replace(first, vmlinux=vmlinux.absolute())
    into = catalogue.guests[scenario.into] if scenario.into else None
    named = catalogue.kernels[scenario.crash_kernel] if scenario.crash_kernel else None
    second = crash or named or (catalogue.kernels[into.kernel] if into else first)
    why = unsuitable(scenario, guest, (first, guest), (second, into or guest))
    return RunPlan(scenario, guest, first, second, into, skip=why)


def unsuitable(scenario: Scenario, guest: Guest, *kernels: tuple[Kernel, Guest]) -> str:
    """Why this combination can't be run, by what is known before anything is fetched; empty when it may.

    kernels: each with the guest that it is for.
    """
    for _, owner in kernels:
        needed = NEEDED_FLAG.get(owner.paging)
        if needed and f"-{needed}" in guest.cpu.split(","):
            return f"CPU flag {needed}: {owner.paging} paging needs it, and {guest.cpu} has none"
    load = LOADS[scenario.load]
    if load.archs and guest.arch not in load.archs:
        return f"{load.option}: there is none on {guest.arch}"
    trigger = TRIGGERS[scenario.trigger]
    if guest.cpus < trigger.cpus:
        return f"the trigger takes {trigger.cpus} CPUs, the guest has {guest.cpus}"
    if trigger.hypervisor and not guest.hypervisor:
        return f"{scenario.trigger}: no hypervisor runs the guest {guest.name}"
    if guest.hypervisor and (why := _beyond_dom0(scenario)):
        return why
    for kernel, owner in kernels:
        if owner.hypervisor and not guest.hypervisor:
            return f"{owner.name}: the rig starts a hypervisor from the dom0 of another one only"
        if kernel.flavours and owner.flavour not in kernel.flavours:
            return f"{kernel.name} has no flavour {owner.flavour}; it has {', '.join(kernel.flavours)}"
    return ""


def _beyond_dom0(scenario: Scenario) -> str:
    """What of the scenario can't be had from the dom0 of a hypervisor; empty when all of it can."""
    if scenario.load not in (Scenario.load, PLAIN):
        return f"into a hypervisor the rig loads by {Scenario.load} or {PLAIN} only"
    if scenario.hops:
        return "a plain kexec from dom0 ends the hypervisor"
    if scenario.sabotage:
        return "sabotage is made for Linux, and kexec under a hypervisor is the hypervisor's"
    return ""


def _kernel(catalogue: Catalogue, text: str) -> Kernel:
    """A kernel of the catalogue by its name or, for anything else that is a file, the user's own image."""
    if text in catalogue.kernels:
        return catalogue.kernels[text]
    path = Path(text)
    if "/" not in text and not path.exists():
        raise RequestError(
            f"unknown kernel {text!r}{nearest(text, catalogue.kernels)}",
            hint=f"{one_of(catalogue.kernels)}; or the path of a bzImage",
        )
    _require_file(path, "kernel image")
    # The whole file name, not its stem: what follows the last dot of vmlinuz-6.1.0-13-amd64 is no suffix.
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", path.name)
    return Kernel(name=name, description=f"the user's own image {path}", image=path.absolute())


def _require_file(path: Path, what: str) -> None:
    if not path.exists():
        raise RequestError(f"{what}: no such file: {path}")
    if not path.is_file():
        raise RequestError(f"{what}: not a file: {path}")


def _require_one_guest(guests: Sequence[Guest]) -> None:
    names = sorted({guest.name for guest in guests})
    if len(names) > 1:
        raise RequestError(
            f"a kernel image or vmlinux of your own fits one kind of guest, but {len(names)} are selected",
            hint=f"choose one with --guest: {', '.join(names)}",
        )
