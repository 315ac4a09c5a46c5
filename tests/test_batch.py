"""Batches: what is finished, what is run again. The runs are pretended, their result directories are real."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig import batch
from rig.errors import RequestError
from rig.evidence.writer import EvidenceWriter, to_json
from rig.facts import Facts
from rig.matrix import RETRY_BECAUSE, RETRY_OF
from rig.model import Failure, Kernel, KernelIdentity, RunPlan, Verdict
from rig.pool import Finished
from rig.progress import Progress
from tests.test_pool import Log, make_plan, make_result

PLANS = [make_plan(name) for name in "abc"]


def keep(
    results: Path, plan: RunPlan, verdict: Verdict, remarks: Mapping[str, Any], message: str = "QEMU died"
) -> Finished:
    """A finished run's directory."""
    failure = Failure("GuestDied", message, "boot") if verdict is Verdict.ERROR else None
    result = replace(make_result(plan), verdict=verdict, environment=dict(remarks), error=failure)
    writer = EvidenceWriter(results, plan.slug)
    writer.write("run.json", to_json(Facts("0", plan, kernel=result.kernel)))
    writer.write("result.json", to_json(result))
    return result, writer.finish()


class Runs:
    """Attempts that end as they are told to, each once; then in a pass."""

    def __init__(self, results: Path, record: batch.Batch, **ends: Verdict) -> None:
        self.results, self.record, self.ends = results, record, ends
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def __call__(
        self, plans: Sequence[RunPlan], remarks: Mapping[str, Any], _progress: Progress, _cancel: threading.Event
    ) -> list[Finished | None]:
        return [self.one(plan, remarks) for plan in plans]

    def one(self, plan: RunPlan, remarks: Mapping[str, Any]) -> Finished:
        self.seen.append((plan.guest.name, dict(remarks)))
        verdict = self.ends.pop(plan.guest.name, Verdict.PASS)
        return keep(self.results, plan, verdict, {batch.BATCH: self.record.started, **remarks})


def run(runs: Runs, taken: list[Finished | None], retry: bool = True) -> list[Finished | None]:
    return batch.run_cells(PLANS, taken, runs, Log(), threading.Event(), retry)


def test_what_could_not_be_judged_is_run_once_more_at_the_end_and_says_so(tmp_path: Path) -> None:
    record = batch.begin(tmp_path, ["all"], "", PLANS)
    runs = Runs(tmp_path, record, a=Verdict.ERROR, b=Verdict.FAIL)
    outcomes = run(runs, [None] * 3)
    second = {RETRY_OF: PLANS[0].slug, RETRY_BECAUSE: "In phase boot: QEMU died"}
    assert runs.seen == [("a", {}), ("b", {}), ("c", {}), ("a", second)]  # a failure is never run again
    assert [outcome and outcome[0].verdict for outcome in outcomes] == [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    assert outcomes[0] is not None
    assert outcomes[0][0].environment[RETRY_OF] == PLANS[0].slug
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        *(plan.slug for plan in PLANS),
        f"{PLANS[0].slug}.2",
    }
    assert batch.left(outcomes, retry=True) == 0
    assert batch.find_finished(tmp_path, record, PLANS) == outcomes


def test_without_retry_and_after_a_second_error_nothing_is_run_again(tmp_path: Path) -> None:
    record = batch.begin(tmp_path, ["all"], "", PLANS)
    runs = Runs(tmp_path, record, a=Verdict.ERROR)
    outcomes = run(runs, [None] * 3, retry=False)
    assert len(runs.seen) == 3
    assert (batch.left(outcomes, retry=False), batch.left(outcomes, retry=True)) == (0, 1)
    # Taken up again: its second attempt is due, and no third one when that ends in an error as well.
    again = Runs(tmp_path, record, a=Verdict.ERROR)
    outcomes = run(again, batch.find_finished(tmp_path, record, PLANS))
    assert [name for name, _ in again.seen] == ["a"]
    assert batch.left(outcomes, retry=True) == 0
    last = Runs(tmp_path, record)
    run(last, batch.find_finished(tmp_path, record, PLANS))
    assert last.seen == []


def test_only_whole_results_of_this_batch_and_this_very_plan_are_taken_over(tmp_path: Path) -> None:
    record = batch.begin(tmp_path, ["all"], "", PLANS)
    mine = {batch.BATCH: record.started}
    keep(tmp_path, PLANS[0], Verdict.PASS, {batch.BATCH: "last night"})
    keep(tmp_path, replace(PLANS[1], guest=replace(PLANS[1].guest, memory=64)), Verdict.PASS, mine)
    torn = keep(tmp_path, PLANS[2], Verdict.PASS, mine)[1]
    (torn / "result.json").write_bytes(b"")
    (tmp_path / f".{PLANS[0].slug}.x1").mkdir()  # of a run that was killed
    assert batch.find_finished(tmp_path, record, PLANS) == [None, None, None]
    kept = [keep(tmp_path, plan, Verdict.PASS, mine) for plan in PLANS]
    assert kept[0][1].name == f"{PLANS[0].slug}.2"
    assert batch.find_finished(tmp_path, record, PLANS) == kept


def test_an_image_of_the_users_that_changed_is_run_again(tmp_path: Path) -> None:
    image, results = tmp_path / "bzImage", tmp_path / "results"
    image.write_bytes(b"one")
    own = replace(PLANS[0], kernel=Kernel("own", "", image=image), crash_kernel=Kernel("own", "", image=image))
    results.mkdir()
    record = batch.begin(results, ["all"], "", [own])
    result, where = keep(results, own, Verdict.PASS, {batch.BATCH: record.started})
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # sha256sum of "one"
    ran = KernelIdentity("own", "6.1", digest)
    (where / "run.json").write_bytes(to_json(Facts("0", own, kernel=ran, crash_kernel=ran)))
    assert batch.find_finished(results, record, [own]) == [(result, where)]
    image.write_bytes(b"another")
    assert batch.find_finished(results, record, [own]) == [None]


def test_a_batch_is_gone_on_with_only_as_it_was_begun(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nothing to resume: .*matrix\.json is not there"):
        batch.resume(tmp_path, ["all"], "", PLANS)
    record = batch.begin(tmp_path, ["all"], "1/4", PLANS)
    assert batch.resume(tmp_path, ["all"], "1/4", PLANS[:2]) == replace(record, cells=("panic@a/k", "panic@b/k"))
    with pytest.raises(RequestError) as raised:
        batch.resume(tmp_path, ["quick"], "2/4", PLANS)
    assert "is of another matrix: all --shard 1/4, not quick --shard 2/4" in raised.value.message
    (tmp_path / batch.RECORD).write_text('{"patterns": 3}')
    with pytest.raises(RequestError, match=r"patterns"):
        batch.resume(tmp_path, ["all"], "1/4", PLANS)


def test_a_second_attempt_that_is_stopped_is_still_due(tmp_path: Path) -> None:
    record = batch.begin(tmp_path, ["all"], "", PLANS)
    error = keep(tmp_path, PLANS[0], Verdict.ERROR, {batch.BATCH: record.started})
    passed = [keep(tmp_path, plan, Verdict.PASS, {batch.BATCH: record.started}) for plan in PLANS[1:]]

    def stopped(plans: Sequence[RunPlan], *_: object) -> list[Finished | None]:
        return [None] * len(plans)

    outcomes = batch.run_cells(PLANS, [error, *passed], stopped, Log(), threading.Event(), retry=True)
    assert outcomes == [error, *passed]
    assert batch.left(outcomes, retry=True) == 1
