"""Which runs may go on from a template (rig/vm/template.py), which one that is, and what it tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

import rig
from rig.guest.arming import Self
from rig.guest.keys import RunKeys
from rig.model import DumpTo, Firmware, Ingredients, Options, RunPlan
from rig.vm.installed import qemu_version
from rig.vm.machine import MachineSpec, Wiring, argv
from rig.vm.template import Template, hindrance, key_of


@dataclass(frozen=True)
class Armed:
    """What was learned of a guest while it booted and was armed. initramfs: of the result's `environment`."""

    keys: RunKeys
    known: Self
    initramfs: Mapping[str, Any]


def unfit(plan: RunPlan, made_of: Ingredients, options: Options, accel: str) -> str:
    """Why a run has to boot its own guest; empty when it need not: nothing that can change its verdict comes before the
    guest is armed, or is part of the template's key."""
    if not options.template:
        return "--no-template"
    if options.repeat is not None and options.repeat.brought is None:
        return "a run that is done again is done from the start"
    if accel != "tcg":
        return f"guests are not taken up under {accel}"
    if plan.guest.hypervisor:
        return "what a hypervisor says of itself is read from its memory as it is"
    if plan.guest.firmware is not Firmware.BIOS:
        return "the firmware's own memory is not part of a template"
    if plan.scenario.dump_to is DumpTo.DISK:
        return "the guest's disk is not part of a template"
    if made_of.control is not None or made_of.program is not None:
        return "the module or program in its initramfs serves this scenario alone"
    return hindrance()


def key(plan: RunPlan, made_of: Ingredients, machine: MachineSpec, crash_cmdline: str, keyless: str) -> str:
    """Of the template that serves a run. keyless: SHA-256 of the initramfs without keys."""
    nowhere = Path()
    spec = replace(machine, run_dir=nowhere, kernel=nowhere, initrd=nowhere, monitor=None)
    return key_of(
        {
            "rig": rig.__version__,
            "qemu": qemu_version(),
            "argv": argv(spec, Wiring(0, 0, 0, 0, 0)),
            "kernel": made_of.kernel.sha256,
            "crash kernel": made_of.crash_kernel.sha256,
            "linked at": made_of.crash_kernel.linked_at,
            "initramfs": keyless,
            "hops": plan.scenario.hops,
            "load": plan.scenario.load,
            "crash command line": crash_cmdline,
        }
    )


def pack(armed: Armed) -> bytes:
    return msgspec.json.encode(armed)


def unpack(template: Template) -> Armed:
    return msgspec.json.decode(template.told, type=Armed)


def told(template: Template | None, why: str) -> dict[str, Any]:
    """`template` in the result's environment: the one that the run went on from, or why it booted its guest itself."""
    if template is None:
        return {"used": False, "why": why}
    made = datetime.fromtimestamp(template.made, UTC).isoformat(timespec="seconds")
    return {"used": True, "key": template.key, "made": made}
