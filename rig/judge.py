"""Evidence -> RunResult. Pure: the same evidence gives the same result, today and offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rig.checks import run_check
from rig.errors import EvidenceError, RequestError
from rig.evidence import LISTING
from rig.evidence.reader import Evidence
from rig.facts import Damage, Facts
from rig.handover import HandOver, last_words
from rig.memory import levels
from rig.memory.physical import OutsideMemory
from rig.model import PAGE_SIZE, Checkpoint, CheckResult, Failure, RunResult, Verdict
from rig.reading import over_evidence

SURVIVES = {"crash-kernel-boots", "jump-returns"}  # fail when the guest dies


def judge(evidence: Evidence) -> RunResult:
    """Run the scenario's checks over the evidence; the worst verdict wins.

    A run that broke off is an error, unless what was seen until then already is a failure.
    """
    facts = evidence.facts
    scenario = facts.plan.scenario
    if facts.skip:
        checks = tuple(CheckResult(name, Verdict.SKIP, facts.skip) for name in scenario.checks)
    else:
        checks = tuple(run_check(name, evidence) for name in scenario.checks)
    verdicts = [c.verdict for c in checks]
    if facts.broke_off is not None and not facts.died:
        verdicts.append(Verdict.ERROR)
    verdict = Verdict.worst(verdicts) if checks else Verdict.ERROR
    return RunResult(
        id=facts.plan.id,
        scenario=scenario.name,
        guest=facts.plan.guest.name,
        kernel=facts.kernel,
        crash_kernel=facts.crash_kernel,
        expect=scenario.expect,
        verdict=verdict,
        checks=checks,
        phases=facts.phases,
        environment=facts.environment,
        expect_failed=scenario.expect_failed,
        surprise=_surprise(evidence, verdict, checks),
        started=facts.started,
        error=_broke_off(evidence),
    )


def _broke_off(evidence: Evidence) -> Failure | None:
    """Why the run broke off; of a guest that died in the hand-over with what it executed last, and why it died."""
    facts = evidence.facts
    if facts.broke_off is None or not facts.post_mortem:
        return facts.broke_off
    try:
        # there is a way on from the new image in a kexec jump only
        words = last_words(HandOver(evidence, back=Checkpoint.HANDOVER in facts.captured))
    except EvidenceError as problem:
        words = problem.message
    hint = f"every instruction up to there is in {LISTING}"
    return replace(facts.broke_off, message=f"{facts.broke_off.message}; {words}", hint=hint)


def judge_dir(path: Path) -> RunResult:
    """Judge saved evidence again.

    :raise RequestError: the directory is no evidence directory
    :raise EvidenceError: run.json is torn or can't be true
    """
    if not (path / "run.json").is_file():
        raise RequestError(
            f"{path} is not an evidence directory: it has no run.json", hint="give a directory below results/"
        )
    with over_evidence(path):
        return judge(Evidence(path))


def _surprise(evidence: Evidence, verdict: Verdict, checks: Sequence[CheckResult]) -> str:
    """Why this is not what the scenario expects; empty when it is."""
    facts = evidence.facts
    scenario = facts.plan.scenario
    if verdict is Verdict.ERROR:
        return "could not judge"
    if facts.skip:
        return f"skipped: {facts.skip}"
    failed = {c.name for c in checks if c.verdict is Verdict.FAIL}
    expected = set(scenario.expect_failed) if scenario.expect is Verdict.FAIL else set()
    parts = []
    if unseen := expected - failed:
        parts.append(f"went unnoticed by {', '.join(sorted(unseen))}")
    if extra := failed - expected:
        parts.append(f"{', '.join(sorted(extra))} failed")
    # A machine that dies as it should leaves nothing behind for the checks that look at what comes later.
    died_as_expected = facts.died and bool(SURVIVES & expected & failed)
    unjudged = (Verdict.SKIP,) if died_as_expected else (Verdict.ERROR, Verdict.SKIP)
    if others := [c.name for c in checks if c.verdict in unjudged]:
        parts.append(f"{', '.join(others)} not judged")
    if not parts and scenario.sabotage:
        parts += _sabotage_mismatch(evidence, checks)
    return "; ".join(parts)


def _sabotage_mismatch(evidence: Evidence, checks: Sequence[CheckResult]) -> list[str]:
    """Was done what the sabotage says, and are the pgd entries that the rig names exactly those which it changed?"""
    facts = evidence.facts
    if not facts.damage and not facts.register_damage:
        return ["the sabotage left no record of what it did"]
    told = _told_entries(facts)
    named = [
        (e["index"], e["before"], e["after"])
        for c in checks
        if c.name == "pgd-survives"
        for e in c.figures.get("entries_changed", ())
    ]
    found = {next((one for one in told if _is_it(facts, one, entry)), entry) for entry in named}
    seen_at = Checkpoint.RETURNED if facts.jump else Checkpoint.HANDOVER
    if seen_at not in facts.captured:
        return []  # it died on the way: of its memory only the sabotage's own word is left
    if told != found:
        return [f"the sabotage changed entries {sorted(told)}, the rig named {sorted(found)}"]
    try:
        if absent := [f"{d.address:#x}" for d in facts.damage if not _is_seen(evidence, seen_at, d)]:
            return [f"what the sabotage says it wrote is not in memory at {seen_at}: {', '.join(absent)}"]
        return [
            f"{d.register} is not {d.after:#x} at {seen_at}, as the sabotage says"
            for d in facts.register_damage
            if evidence.crashing_cpu(seen_at).register(d.register) != d.after
        ]
    except EvidenceError as problem:
        return [f"what the sabotage did can't be seen: {problem.message}"]


def _told_entries(facts: Facts) -> set[tuple[int, int, int]]:
    """(index, before, after) of the pgd's entries in which the damaged bytes differ."""
    if facts.mode is None or facts.cr3 is None:
        return set()
    root, size = levels.root(facts.mode, facts.cr3), levels.root_size(facts.mode)
    width = levels.MODES[facts.mode].entry_size
    told = set()
    for damage in facts.damage:
        before, after = (value.to_bytes(damage.size, "little") for value in (damage.before, damage.after))
        for at in range(0, damage.size, width):
            old, new = before[at : at + width], after[at : at + width]
            if old != new and 0 <= damage.address + at - root < size:
                index = (damage.address + at - root) // width
                told.add((index, int.from_bytes(old, "little"), int.from_bytes(new, "little")))
    return told


def _is_it(facts: Facts, written: tuple[int, int, int], found: tuple[int, int, int]) -> bool:
    """Whether an entry (index, before, after) is as it was written; the CPU may have used it since."""
    assert facts.mode is not None
    size = levels.MODES[facts.mode].entry_size
    return written[:2] == found[:2] and _but_for_accessed(facts, written[2], found[2], size)


def _but_for_accessed(facts: Facts, written: int, found: int, size: int) -> bool:
    """Whether entries of page tables, `size` bytes of them, are as written but for accessed bits set since."""
    assert facts.mode is not None
    width = levels.MODES[facts.mode].entry_size
    accessed = sum(levels.ACCESSED << 8 * at for at in range(0, size, width))
    return found & ~accessed == written & ~accessed and written & ~found == 0


def _is_seen(evidence: Evidence, seen_at: Checkpoint, damage: Damage) -> bool:
    try:
        found = evidence.memory(seen_at).read(damage.address, damage.size)
    except OutsideMemory:
        return False  # the page was not kept: it never changed
    value = int.from_bytes(found, "little")
    if damage.address & ~(PAGE_SIZE - 1) in evidence.facts.tables:
        return _but_for_accessed(evidence.facts, damage.after, value, damage.size)
    return value == damage.after
