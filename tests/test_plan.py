from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig.catalog import Catalogue
from rig.errors import RequestError
from rig.model import Arch, Cells, Dump, Kernel, PagingMode, Scenario, Selection, Until, Verdict
from rig.plan import matrix, plan, until_handover
from tests.forge import GUEST

PAE = replace(GUEST, name="pae", paging=PagingMode.PAE, flavour="686-pae", kernel="stock")
XEN = replace(PAE, name="xen", arch=Arch.AMD64, flavour="amd64", hypervisor="xen-hypervisor-4.17-amd64")
BIG = replace(PAE, name="x86_64", arch=Arch.AMD64, paging=PagingMode.FOUR_LEVEL, flavour="amd64")
OWN = replace(PAE, name="own")
PANIC = Scenario(name="panic", description="", trigger="sysrq-c", checks=("c",), guests=("pae", "x86_64"))
KDUMP = replace(PANIC, name="kdump", guests=("pae",))
STOCK = Kernel(name="stock", description="", package="linux-image-{flavour}")
NEXT = Kernel(name="next", description="", package="linux-image-next-{flavour}")
CATALOGUE = Catalogue(
    guests={"own": OWN, "pae": PAE, "x86_64": BIG},
    kernels={"next": NEXT, "stock": STOCK},
    scenarios={"kdump": KDUMP, "panic": PANIC},
    selections={},
    files={},
)


def ids(scenarios: list[str], guests: list[str]) -> list[str]:
    return [one.id for one in plan(CATALOGUE, scenarios, guests)]


def test_every_guest_of_the_scenario_in_its_order() -> None:
    assert ids(["panic"], []) == ["panic@pae/stock", "panic@x86_64/stock"]


def test_guests_in_the_order_asked_for_each_once() -> None:
    assert ids(["panic"], ["x86_64", "pae", "x86_64"]) == ["panic@x86_64/stock", "panic@pae/stock"]


def test_a_guest_that_the_scenario_does_not_list_can_be_asked_for() -> None:
    assert ids(["panic"], ["own"]) == ["panic@own/stock"]


def test_several_scenarios() -> None:
    assert ids(["kdump", "panic"], []) == ["kdump@pae/stock", "panic@pae/stock", "panic@x86_64/stock"]


def test_a_trigger_that_takes_more_cpus_than_the_guest_has_is_skipped() -> None:
    last = replace(PANIC, name="last", trigger="sysrq-c-cpu2")
    some = replace(CATALOGUE, scenarios={"last": last}, guests={"pae": PAE, "x86_64": replace(BIG, cpus=4)})
    assert [one.skip for one in plan(some, ["last"])] == ["the trigger takes 3 CPUs, the guest has 2", ""]


def test_the_crash_kernel_is_the_first_kernel_unless_named() -> None:
    (one,) = plan(CATALOGUE, ["panic"], ["pae"], kernel="next")
    assert (one.kernel, one.crash_kernel) == (NEXT, NEXT)
    (one,) = plan(CATALOGUE, ["panic"], ["pae"], crash_kernel="next")
    assert (one.kernel, one.crash_kernel) == (STOCK, NEXT)


def test_the_crash_kernel_that_the_scenario_names() -> None:
    both = replace(CATALOGUE, scenarios={"over": replace(KDUMP, name="over", crash_kernel="next")})
    assert plan(both, ["over"])[0].crash_kernel == NEXT
    assert plan(both, ["over"], crash_kernel="stock")[0].crash_kernel == STOCK


def test_what_there_is_not_is_skipped_with_the_reason() -> None:
    narrow = replace(STOCK, flavours=("amd64",))
    file_load = replace(PANIC, name="file", load="kexec_file_load")
    some = replace(CATALOGUE, kernels={"stock": narrow, "next": NEXT}, scenarios={"panic": PANIC, "file": file_load})
    assert [one.skip for one in plan(some, ["panic"])] == ["stock has no flavour 686-pae; it has amd64", ""]
    assert [one.skip for one in plan(some, ["file"], kernel="next")] == ["CONFIG_KEXEC_FILE: there is none on i386", ""]


def test_a_cpu_that_lacks_what_the_paging_mode_needs() -> None:
    old = replace(CATALOGUE.guests["pae"], cpu="pentium3,-pae")
    without = replace(CATALOGUE, guests={**CATALOGUE.guests, "pae": old})
    [one] = plan(without, ["panic"], ["pae"])
    assert one.skip == "CPU flag pae: pae paging needs it, and pentium3,-pae has none"
    two_level = replace(old, paging=PagingMode.TWO_LEVEL)
    [one] = plan(replace(CATALOGUE, guests={"pae": two_level}), ["panic"], ["pae"])
    assert one.skip == ""


def test_an_image_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "vmlinuz-6.1.0-13 (mine)"
    image.write_bytes(b"")
    (one,) = plan(CATALOGUE, ["panic"], ["pae"], kernel=str(image))
    assert one.kernel.image == image
    assert one.id == "panic@pae/vmlinuz-6.1.0-13_mine_"
    assert one.crash_kernel == one.kernel
    monkeypatch.chdir(tmp_path)  # a bare file name will do when it exists
    (one,) = plan(CATALOGUE, ["panic"], ["pae"], kernel=image.name)
    assert one.kernel.image == image


def test_a_name_of_the_catalogue_comes_before_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "next").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    (by_name,) = plan(CATALOGUE, ["panic"], ["pae"], kernel="next")
    (by_path,) = plan(CATALOGUE, ["panic"], ["pae"], kernel="./next")
    assert by_name.kernel == NEXT
    assert by_path.kernel.image == tmp_path / "next"


def test_vmlinux_belongs_to_the_first_kernel(tmp_path: Path) -> None:
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(b"")
    (one,) = plan(CATALOGUE, ["panic"], ["pae"], crash_kernel="next", vmlinux=vmlinux)
    assert one.kernel == replace(STOCK, vmlinux=vmlinux)
    assert one.crash_kernel.vmlinux is None


@pytest.mark.parametrize(
    ("scenario", "guest", "kernel", "message"),
    [
        ("pnic", "pae", None, "unknown scenario 'pnic'; did you mean 'panic'?"),
        ("panic", "paee", None, "unknown guest 'paee'; did you mean 'pae'?"),
        ("panic", "pae", "stok", "unknown kernel 'stok'; did you mean 'stock'?"),
        ("panic", "pae", "./nowhere", "kernel image: no such file: nowhere"),
        ("panic", "pae", "/", "kernel image: not a file: /"),
    ],
)
def test_wrong_requests(scenario: str, guest: str, kernel: str | None, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        plan(CATALOGUE, [scenario], [guest], kernel=kernel)
    assert raised.value.message == message
    with pytest.raises(RequestError, match="--vmlinux: no such file"):
        plan(CATALOGUE, ["panic"], ["pae"], vmlinux=Path("/nowhere/vmlinux"))


def test_one_image_does_not_fit_several_kinds_of_guest(tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(b"")
    for kernel, crash_kernel in ((str(image), None), (None, str(image))):
        with pytest.raises(RequestError) as raised:
            plan(CATALOGUE, ["panic"], kernel=kernel, crash_kernel=crash_kernel)
        assert raised.value.hint == "choose one with --guest: pae, x86_64"
    with pytest.raises(RequestError, match="fits one kind of guest"):
        plan(CATALOGUE, ["panic"], vmlinux=image)
    assert len(plan(CATALOGUE, ["panic", "kdump"], ["pae"], kernel=str(image))) == 2


def test_nothing_selected() -> None:
    with pytest.raises(RequestError, match="nothing is selected") as raised:
        plan(CATALOGUE, [])
    assert raised.value.hint == "scenarios: kdump, panic"


def test_what_a_hypervisor_makes_impossible_is_skipped_with_its_reason() -> None:
    scenarios = {
        "panic": PANIC,
        "file": replace(PANIC, load="kexec_file_load"),
        "sabotage": replace(PANIC, sabotage="damage what=pgd"),
        "hops": replace(PANIC, hops=1),
        "key": replace(PANIC, trigger="xen-key-c"),
    }
    some = replace(CATALOGUE, guests={"xen": XEN, "x86_64": BIG}, scenarios=scenarios)
    on_xen = [one.skip for one in plan(some, list(scenarios), ["xen"])]
    assert on_xen[0] == on_xen[4] == ""
    assert "by kexec_load or plain only" in on_xen[1]
    assert "sabotage is made for Linux" in on_xen[2]
    assert "plain kexec from dom0 ends the hypervisor" in on_xen[3]
    assert [one.skip for one in plan(some, ["panic", "key"], ["x86_64"])] == [
        "",
        "xen-key-c: no hypervisor runs the guest x86_64",
    ]
    into = replace(PANIC, load="plain", trigger="kexec-e", into="xen")
    (one,) = plan(replace(some, scenarios={"into": into}), ["into"], ["x86_64"])
    assert one.skip == "xen: the rig starts a hypervisor from the dom0 of another one only"


NIGHT = Selection("night", "", (Cells(("panic", "k*"), ("p*",), ("*",)), Cells(("panic",))))
NIGHTLY = replace(CATALOGUE, selections={"night": NIGHT})


def test_a_selection_is_all_its_cells_each_once() -> None:
    assert [one.id for one in matrix(NIGHTLY, ["night"])] == [
        "panic@pae/next",
        "panic@pae/stock",
        "kdump@pae/next",
        "kdump@pae/stock",
        "panic@x86_64/stock",  # the second [[cells]], less what is there already
    ]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["kdump"], ["kdump@pae/stock"]),  # a scenario's own cells
        (["*/next"], ["panic@pae/next", "kdump@pae/next"]),  # those of selections too
        (["panic@x86_64/*", "*@x86_64/*"], ["panic@x86_64/stock"]),
    ],
)
def test_cells_by_pattern(patterns: list[str], expected: list[str]) -> None:
    assert [one.id for one in matrix(NIGHTLY, patterns)] == expected


def test_a_pattern_that_nothing_matches() -> None:
    with pytest.raises(RequestError, match="nothing of the matrix matches 'nigt'; did you mean 'night'"):
        matrix(NIGHTLY, ["night", "nigt"])


def test_the_second_kernel_may_be_of_another_guest() -> None:
    into = replace(KDUMP, name="into", into="x86_64")
    catalogue = replace(CATALOGUE, scenarios={"into": into})
    [one] = plan(catalogue, ["into"])
    assert (one.into, one.crash_kernel, one.skip) == (BIG, STOCK, "")
    narrow = replace(STOCK, flavours=("686-pae",))
    [one] = plan(replace(catalogue, kernels={"stock": narrow}), ["into"])
    assert one.skip == "stock has no flavour amd64; it has 686-pae"


LATER = ("crash-kernel-boots", "vmcore-registers")


def test_until_the_handover_leaves_out_what_is_judged_later() -> None:
    (one,) = plan(CATALOGUE, ["panic"], ["pae"])
    full = replace(one, scenario=replace(PANIC, checks=("pgd-survives", *LATER)))
    cut = until_handover(full, LATER)
    assert (cut.scenario.checks, cut.scenario.until, cut.id) == (("pgd-survives",), Until.HANDOVER, full.id)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"load": "jump"}, "enters no kernel"),
        ({"load": "none"}, "enters no kernel"),
        ({"dump": Dump.RAW}, "about the dump"),
        ({"expect": Verdict.FAIL, "expect_failed": ("vmcore-registers",)}, "expects vmcore-registers to fail"),
        ({"checks": LATER}, "none of its checks"),
    ],
)
def test_what_can_not_end_at_the_handover(changes: dict[str, Any], why: str) -> None:
    (one,) = plan(CATALOGUE, ["panic"], ["pae"])
    with pytest.raises(RequestError, match=f"panic can't end at the hand-over: .*{why}"):
        until_handover(replace(one, scenario=replace(PANIC, **changes)), LATER)
