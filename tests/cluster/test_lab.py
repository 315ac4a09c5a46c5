"""Which cell goes where, and what becomes of one whose worker dies."""

from __future__ import annotations

from rig import pool
from rig.cluster.lab import Lab, Place
from rig.cluster.machine import Machine
from rig.model import RunPlan
from tests.test_pool import PLENTY, make_plan

SMALL = pool.guest_need(512)


def machine(name: str, cpus: int = 2, memory: int = PLENTY) -> list[Place]:
    """A place for each CPU: `a0`, `a1`..."""
    here = Machine(name, name, cpus, memory, "rig", "QEMU", "tcg")
    return [Place(f"{name}{number}", here) for number in range(cpus)]


def cells(count: int, memory: int = 512, cpus: int = 1) -> list[RunPlan]:
    return [make_plan(f"g{number}", memory, cpus) for number in range(count)]


def begun(lab: Lab) -> list[tuple[int, str]]:
    return [(number, place.worker) for number, place in iter(lab.begin, None)]


def test_every_worker_gets_one_cell_and_machines_are_filled_evenly() -> None:
    lab = Lab(cells(5), [*machine("a"), *machine("b")])
    first = begun(lab)
    assert [number for number, _ in first] == [0, 1, 2, 3]
    assert {worker[0] for _, worker in first[:2]} == {"a", "b"}
    assert len({worker for _, worker in first}) == 4
    lab.end(first[1][1])
    assert begun(lab) == [(4, first[1][1])]
    assert not lab.finished


def test_a_guest_of_two_cpus_takes_both_of_its_machine_though_a_worker_is_free() -> None:
    lab = Lab([*cells(1, cpus=2), *cells(1)], machine("a"))
    assert [number for number, _ in begun(lab)] == [0]
    lab.end("a0")
    assert [number for number, _ in begun(lab)] == [1]


def test_memory_is_shared_by_all_workers_of_a_machine() -> None:
    lab = Lab(cells(3), machine("a", 4, 2 * SMALL + 1))
    assert len(begun(lab)) == 2


def test_a_cell_that_fits_nowhere_is_given_up_and_others_are_not() -> None:
    lab = Lab([*cells(1, memory=4096), *cells(1)], machine("a", 2, SMALL))
    assert lab.give_up() == [0]
    assert [number for number, _ in begun(lab)] == [1]
    lab.end("a0")
    assert lab.finished


def test_a_dead_workers_cell_is_run_on_another_machine_even_when_its_own_has_room() -> None:
    lab = Lab(cells(1), machine("a"))
    assert begun(lab) == [(0, "a0")]
    for place in machine("b", 1):
        lab.join(place)
    assert lab.leave("a0") == (0, True)
    assert begun(lab) == [(0, "b0")]
    assert lab.ended_on(0) == ["a"]


def test_it_waits_for_no_other_machine_when_there_is_none_that_fits() -> None:
    lab = Lab(cells(1, memory=4096), [*machine("a"), *machine("b", 1, SMALL)])
    ((_, worker),) = begun(lab)
    lab.leave(worker)
    ((number, again),) = begun(lab)
    assert (number, again[0]) == (0, "a")


def test_a_cell_that_ends_two_workers_is_not_run_again() -> None:
    lab = Lab(cells(2), [*machine("a", 1), *machine("b", 1), *machine("c", 1)])
    (poison, first), _ = begun(lab)
    assert lab.leave(first) == (poison, True)
    ((number, second),) = begun(lab)
    assert number == poison
    assert lab.leave(second) == (poison, False)
    assert begun(lab) == []
    assert lab.ended_on(poison) == [first[0], second[0]]
    assert lab.ended_on(1 - poison) == []


def test_a_worker_that_was_asked_to_end_is_held_against_no_cell() -> None:
    lab = Lab(cells(1), machine("a", 1))
    for _ in range(3):
        begun(lab)
        assert lab.leave("a0", blame=False) == (0, True)
        lab.join(machine("a", 1)[0])
    assert lab.ended_on(0) == []


def test_the_word_that_a_worker_is_gone_may_come_twice() -> None:
    lab = Lab(cells(1), machine("a", 1))
    begun(lab)
    assert lab.leave("a0") == (0, True)
    assert lab.leave("a0") is None
    assert lab.machines == []
    assert lab.give_up() == [0]  # the caller asks only while there are machines
