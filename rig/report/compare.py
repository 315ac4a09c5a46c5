"""Two runs side by side, as before and after a patch series. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rig.model import CheckResult, KernelIdentity, Phase, RunResult, Verdict
from rig.report.figures import FigureChange, differing
from rig.report.tracediff import WayDifference
from rig.report.wording import Outcome, Tone, check_outcome, outcome

# From good to bad, as the verdicts themselves are ordered.
TONES = (Tone.GOOD, Tone.NEUTRAL, Tone.UNKNOWN, Tone.BAD)
VERDICTS = tuple(Verdict)
# Of the environment: temporary paths, a file with keys of that run alone, what other runs took.
_LEFT_OUT = ("argv", "initramfs", "peak_memory_mib", "memory_mib", "open_files")


class Course(enum.StrEnum):
    """The way it went; what to look at first comes first. gone: only before. new: only after."""

    WORSE = "worse"
    GONE = "gone"
    NEW = "new"
    BETTER = "better"
    SAME = "same"


@dataclass(frozen=True)
class CheckPair:
    """One check on both sides; None on the side that did not have it. figures: those that differ."""

    name: str
    before: Outcome | None
    after: Outcome | None
    course: Course
    summaries: tuple[str, str]
    figures: tuple[FigureChange, ...]


@dataclass(frozen=True)
class PhasePair:
    """Seconds; None on the side that did not have the phase."""

    name: str
    before: float | None
    after: float | None

    @property
    def relative(self) -> float | None:
        return None if self.before is None or self.after is None else (self.after - self.before) / (self.before or 1e-3)


@dataclass(frozen=True)
class Comparison:
    """setting: kernels and environment, where they differ. way: of the hand-overs; None when `no_way` says why not."""

    before: RunResult
    after: RunResult
    course: Course
    setting: tuple[FigureChange, ...]
    checks: tuple[CheckPair, ...]
    phases: tuple[PhasePair, ...]
    way: WayDifference | None
    no_way: str = ""

    @property
    def name(self) -> str:
        return self.before.id if self.before.id == self.after.id else f"{self.before.id} -> {self.after.id}"

    @property
    def figures(self) -> int:
        """How many figures differ, addresses aside."""
        return sum(not figure.place for check in self.checks for figure in check.figures)


def compare(before: RunResult, after: RunResult, way: WayDifference | None, no_way: str = "") -> Comparison:
    """way: the difference of their hand-overs. no_way: why there is none."""
    return Comparison(
        before=before,
        after=after,
        course=_run_course(before, after),
        setting=differing(_setting(before), _setting(after)),
        checks=tuple(_checks(before, after)),
        phases=tuple(_phases(before.phases, after.phases)),
        way=way,
        no_way=no_way,
    )


def overall(comparison: Comparison) -> Course:
    """Of the run and of the checks that both sides have: worse, better, or the same."""
    courses = {comparison.course, *(pair.course for pair in comparison.checks)}
    return next((course for course in (Course.WORSE, Course.BETTER) if course in courses), Course.SAME)


def in_order(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """What got worse first."""
    courses = list(Course)
    return sorted(comparisons, key=lambda one: (courses.index(overall(one)), one.name))


def exit_code(comparisons: Iterable[Comparison]) -> int:
    """1 when a run or a check got worse, though both sides were judged; 3 when one could not be; else 0."""
    codes = {_exit_code(comparison) for comparison in comparisons}
    return next((code for code in (1, 3) if code in codes), 0)


def _exit_code(comparison: Comparison) -> int:
    """A check that is not judged any more got worse, too; but where it is the whole run that could not be, it is that
    which is said."""
    worse = [pair for pair in comparison.checks if pair.course is Course.WORSE]
    if Verdict.ERROR in (comparison.before.verdict, comparison.after.verdict):
        unjudged = (Tone.UNKNOWN, Tone.NEUTRAL)
        return 1 if any(pair.after and pair.after.tone not in unjudged for pair in worse) else 3
    return 1 if worse or comparison.course is Course.WORSE else 0


def _run_course(before: RunResult, after: RunResult) -> Course:
    """By what was expected, when both expect the same; else by the bare verdicts: a kernel that is built to misbehave
    fails as expected, but beside the one that it was made of it is worse."""
    if (before.expect, set(before.expect_failed)) == (after.expect, set(after.expect_failed)):
        return _course(TONES.index(outcome(before).tone), TONES.index(outcome(after).tone))
    return _course(VERDICTS.index(before.verdict), VERDICTS.index(after.verdict))


def _check_course(name: str, before: RunResult, after: RunResult) -> Course:
    """As of the runs."""
    old, new = _by_name(before).get(name), _by_name(after).get(name)
    if old is None:
        return Course.NEW
    if new is None:
        return Course.GONE
    if (name in before.expect_failed) == (name in after.expect_failed):
        tones = check_outcome(old, before).tone, check_outcome(new, after).tone
        return _course(*map(TONES.index, tones))
    return _course(VERDICTS.index(old.verdict), VERDICTS.index(new.verdict))


def _course(before: int, after: int) -> Course:
    return Course.SAME if before == after else Course.WORSE if after > before else Course.BETTER


# ---------------------------------------------------------------- parts


def _setting(result: RunResult) -> dict[str, Any]:
    def of(kernel: KernelIdentity) -> dict[str, str]:
        return {"name": kernel.name, "release": kernel.release, "sha256": kernel.sha256}

    shown = {key: value for key, value in result.environment.items() if key not in _LEFT_OUT}
    own = {"scenario": result.scenario, "guest": result.guest}
    return {**own, "kernel": of(result.kernel), "crash_kernel": of(result.crash_kernel), **shown}


def _checks(before: RunResult, after: RunResult) -> Iterator[CheckPair]:
    """In the order of `after`; those that it lacks come last."""
    old, new = _by_name(before), _by_name(after)
    for name in new | old:
        one, other = old.get(name), new.get(name)
        outcomes = (check_outcome(one, before) if one else None, check_outcome(other, after) if other else None)
        figures = differing(one.figures, other.figures) if one and other else ()
        said = (one.summary if one else "", other.summary if other else "")
        yield CheckPair(name, *outcomes, _check_course(name, before, after), said, figures)


def _by_name(result: RunResult) -> dict[str, CheckResult]:
    return {check.name: check for check in result.checks}


def _phases(before: Iterable[Phase], after: Iterable[Phase]) -> Iterator[PhasePair]:
    old, new = ({phase.name: phase.seconds for phase in phases} for phases in (before, after))
    for name in old | new:
        yield PhasePair(name, old.get(name), new.get(name))
