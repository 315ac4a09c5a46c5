"""A machine that a Xen hypervisor runs, from the panic of dom0, and of the hypervisor, to the judged dump."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.evidence.reader import Evidence
from rig.model import Checkpoint
from tests.runs.conftest import checks, figures, rig

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("scenario", "owner", "words"),
    [
        ("xen-dom0-panic", "dom0", "Hardware Dom0 crashed: Executing kexec image"),
        ("xen-crash", "hypervisor", "'C' pressed -> triggering crashdump"),
    ],
)
def test_the_page_tables_survive_and_the_dump_shows_both(tmp_path: Path, scenario: str, owner: str, words: str) -> None:
    done = rig("run", scenario, "--json", "--results", tmp_path)
    assert done.status == 0, done.err
    result = done.results["xen"]
    assert set(checks(result).values()) == {"pass"}
    evidence = Evidence(done.directories["xen"])
    told = figures(result, "pgd-survives")["owner"]
    assert told["name"] == owner
    # dom0 knows the page by another address than the machine; the hypervisor's root is no domain's
    assert (told["pseudo_physical"] is None) == (owner == "hypervisor")
    assert told["pseudo_physical"] != evidence.facts.cr3
    assert (told["idle"] == evidence.facts.cr3) == (owner == "hypervisor")
    assert evidence.facts.captured == tuple(
        checkpoint
        for checkpoint in Checkpoint
        if checkpoint not in (Checkpoint.ARMED, Checkpoint.SECOND_KERNEL, Checkpoint.RETURNED)
    )
    assert words.encode() in evidence.console()
    assert {"Xen", "VMCOREINFO_XEN"} <= set(figures(result, "vmcore-registers")["notes"])
    assert evidence.symbol_at(evidence.trace.steps[0].pc) == "machine_kexec+0x0"


@pytest.mark.parametrize("scenario", ["xen-plain-kexec", "xen-plain-kexec-xen"])
def test_dom0_can_start_linux_and_a_new_hypervisor(tmp_path: Path, scenario: str) -> None:
    done = rig("run", scenario, "--json", "--results", tmp_path)
    assert done.status == 0, done.err
    result = done.results["xen"]
    assert set(checks(result).values()) == {"pass"}
    assert figures(result, "image-copied")["zeroed"] > 0
    facts = Evidence(done.directories["xen"]).facts
    # no domain's: the hypervisor left dom0 for its own tables
    assert facts.pgd_owner is not None
    assert (facts.pgd_owner.name, facts.pgd_owner.idle) == ("hypervisor", facts.cr3)
    assert facts.second_is_dom0 == (scenario == "xen-plain-kexec-xen")
