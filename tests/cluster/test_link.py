"""Who is there, by what workers say of themselves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from rig.cluster.address import Address
from rig.cluster.link import JOINED, LEFT, Link
from rig.cluster.machine import Machine, rig_id

ANN = Machine("1", "ann", 2, 4096, rig_id(), "QEMU", "tcg")


def meet(link: Link, answers: dict[str, Any]) -> None:
    async def run(*_: object, **__: object) -> dict[str, Any]:
        return answers

    link.client = SimpleNamespace(run=run)
    asyncio.run(link._meet(None))


def test_only_workers_of_the_very_same_rig_get_cells_and_the_user_is_told_once() -> None:
    told: list[str] = []
    link = Link(Address("tcp://127.0.0.1:1", None), told.append)
    old = replace(ANN, id="2", name="old", rig="0.0.9 (ab)")
    answers = {"w0": ANN, "w1": ANN, "w2": old, "w3": old, "w4": None, "w5": ModuleNotFoundError("no rig here")}
    meet(link, answers)
    meet(link, answers)
    assert set(link.places) == {"w0", "w1"}
    assert link.machines() == [ANN]
    assert [link.events.get_nowait()[:2] for _ in range(link.events.qsize())] == [(JOINED, "w0"), (JOINED, "w1")]
    assert told == [
        f"old gets no cells: its rig is 0.0.9 (ab), this one is {rig_id()}",
        "w4 gets no cells: not started by `rig cluster worker` (None)",
        "w5 gets no cells: not started by `rig cluster worker` (no rig here)",
    ]


def test_whether_a_worker_that_leaves_was_asked_to() -> None:
    link = Link(Address("tcp://127.0.0.1:1", None), print)
    meet(link, {"w0": ANN, "w1": ANN})
    link._on_leaving((0.0, "w0"))
    for worker in ("w0", "w1", "another's"):
        link._on_change((0.0, {"action": "remove-worker", "worker": worker}))
    events = [link.events.get_nowait() for _ in range(link.events.qsize())]
    assert events[2:] == [(LEFT, "w0", True), (LEFT, "w1", False)]
    assert link.places == {}
