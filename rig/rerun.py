"""The very same run again: what of it can be had as it was, what can't, and what the new verdicts have against the old.

The same are the plan, every file that the guest executes, the command lines, the machine, QEMU's version, accelerator
and seed. New in every run are the SSH keys, the pattern in the crashing task's memory, and what the guest itself draws
at random (KASLR).
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, Literal

import msgspec

import rig
from rig import catalog, ingredients, prepare
from rig.checks import REGISTRY
from rig.errors import Cancelled, CouldNotJudge, EvidenceError, MachineError, RequestError
from rig.evidence import VMCORE
from rig.evidence.reader import Evidence
from rig.facts import Facts, Manifest
from rig.guest.packages import PackageCache
from rig.guest.provenance import tree_of
from rig.ingredients import CACHE, OWN, Lost
from rig.loads import LOADS
from rig.matrix import WIDTH
from rig.model import DumpTo, Guest, Ingredients, Kernel, Options, PackageId, Repeat, RunPlan, RunResult, Scenario
from rig.rules import entries, everywhere, numbers, words
from rig.triggers import TRIGGERS
from rig.vm.installed import parse_version, qemu_version
from rig.vm.machine import MONITOR, SANDBOX, Wiring, argv

# What of a command line can't be the same twice: descriptors, and where files lie (what they hold is compared).
_PER_RUN = re.compile(r"(?:(?<=^)|(?<=[=, ]))/[^ ,]*|(?<=fd=)\d+")
_LOG = "-D"  # its value is a path, relative perhaps


@dataclass(frozen=True)
class Outlook:
    """What a run would be if it were done again now.

    differences: what makes it another run, for people; none when it is the same. notes: what doesn't.
    made_of: None as long as not all of it is there. gone: files of it that aren't what they were.
    """

    differences: tuple[str, ...]
    notes: tuple[str, ...]
    made_of: Ingredients | None
    gone: frozenset[Path] = frozenset()


def read_evidence(directory: Path) -> Evidence:
    """Evidence of a run that can be done again.

    :raise RequestError: the directory is none, or nothing was booted, or this rig doesn't know what was done, or it
        holds what would be more than a value where it is used
    """
    if not (directory / "run.json").is_file():
        raise RequestError(
            f"{directory} is not an evidence directory: it has no run.json", hint="give a directory below results/"
        )
    evidence = Evidence(directory)
    plan = evidence.facts.plan
    if evidence.facts.skip:
        raise RequestError(f"{directory}: nothing was run: {evidence.facts.skip}")
    for where, complaint in (*_plan_complaints(plan), *everywhere(evidence.facts.manifest, words.RULES, "manifest")):
        raise RequestError(f"{directory / 'run.json'}: {where}: {complaint}", hint="no rig wrote this; it is not run")
    _refuse_foreign_sources(directory, plan)
    scenario = plan.scenario
    named = ((scenario.checks, REGISTRY, "check"), ((scenario.trigger,), TRIGGERS, "trigger"))
    tables: tuple[tuple[Sequence[str], Mapping[str, Any], str], ...] = (*named, ((scenario.load,), LOADS, "load"))
    for names, table, what in tables:
        if unknown := [name for name in names if name not in table]:
            raise RequestError(f"{directory}: this rig has no {what} {', '.join(unknown)}: another rig ran it")
    return evidence


def _refuse_foreign_sources(directory: Path, plan: RunPlan) -> None:
    """What is built is built on this machine, by make: not from where somebody's evidence says.

    :raise RequestError: modules or kernels would be, of a catalogue that is neither the rig's own nor RIG_CATALOGUE's
    """
    trusted = {*catalog.roots(), *catalog.extra_roots(())}
    control = catalog.control(plan.scenario)
    builds = [(kernel.home, kernel.source) for kernel in (plan.kernel, plan.crash_kernel) if kernel.source]
    if control is not None:
        builds.append((control.parents[2], plan.scenario.control))
    for home, what in builds:
        if home is not None and home.resolve() not in trusted and (home / catalog.KERNELS).is_dir():
            raise RequestError(
                f"{directory / 'run.json'}: {what} is to be built from files of the catalogue {home}",
                hint=f"if you trust that catalogue, say so: RIG_CATALOGUE={home}",
            )


def _plan_complaints(plan: RunPlan) -> Iterator[tuple[str, str]]:
    """Evidence may be a stranger's: what goes into commands is held to the rules of the catalogue. Whether a user's own
    image is still there is said later."""
    parts: dict[str, Guest | Kernel | Scenario] = {
        "guest": plan.guest,
        "scenario": plan.scenario,
        "kernel": plan.kernel,
        "crash_kernel": plan.crash_kernel,
    }
    for part, entry in (parts | ({"into": plan.into} if plan.into else {})).items():
        if not catalog.NAME.fullmatch(entry.name) and not (isinstance(entry, Kernel) and entry.image):
            yield f"plan.{part}.name", f"{entry.name!r} can't be a name"
        for key, complaint in entries.complaints(entry):
            if key not in ("image", "vmlinux"):
                yield f"plan.{part}.{key}", complaint


def options_of(evidence: Evidence, options: Options) -> Options:
    """The options that matter to a run as they were, the rest as given."""
    told = _told_options(evidence)
    return replace(
        options,
        accel=told.accel or options.accel,
        deadline=told.deadline or options.deadline,
        seed=told.sabotage_seed,
        keep_memory=any((evidence.path / "memory").glob("*.ram.zst")),
        keep_dump=(evidence.path / VMCORE).exists(),
    )


class _Environment(msgspec.Struct):
    """Of the environment what a repetition takes from it."""

    accel: Literal["auto", "tcg", "kvm"] | None = None
    deadline: Annotated[float, msgspec.Meta(gt=0, le=numbers.SECONDS)] | None = None
    sabotage_seed: int | None = None
    qemu: str = ""
    argv: tuple[str, ...] = ()
    cmdline: str = ""
    crash_cmdline: str = ""


def _told_options(evidence: Evidence) -> _Environment:
    try:
        return msgspec.convert(evidence.facts.environment, _Environment)
    except msgspec.ValidationError as problem:
        raise EvidenceError(f"{evidence.path / 'run.json'}: environment: {problem}") from problem


# ---------------------------------------------------------------- before


def examine(facts: Facts, cache: PackageCache, options: Options, cancel: threading.Event) -> Outlook:
    """What can be had of it. Asks the package sources only for what has left the cache.

    :raise Cancelled: `cancel` was set
    """
    machine, notes = _of_this_machine(facts, cache, options)
    manifest = facts.manifest
    if manifest is None:
        why = "its evidence does not say what it was made of: it broke off early, or an older rig wrote it"
        return Outlook((why, *machine), notes, None)
    lost, troubles = _restore(facts.plan, manifest, cache, cancel)
    old = ingredients.find(manifest, cache.cache.root)
    if lost:
        gone = frozenset(one.today for one in lost)
        return Outlook((*_told(lost, manifest, troubles), *machine), notes, None, gone)
    return Outlook((*machine, *_put_together(facts, manifest, old, options)), notes, old)


def substitute(facts: Facts, outlook: Outlook, cache: PackageCache, cancel: threading.Event) -> Ingredients:
    """What the run is made of when it need not be the same: the old files where they are there, today's for others."""
    if outlook.made_of is not None:
        return outlook.made_of
    fresh = prepare.gather(facts.plan, cache, cancel)
    if facts.manifest is None:
        return fresh
    return ingredients.merged(ingredients.find(facts.manifest, cache.cache.root), fresh, set(outlook.gone))


def repeat(directory: Path, facts: Facts, outlook: Outlook, made_of: Ingredients) -> Repeat:
    """What the new run is told of the old one."""
    taken = []
    for what, old, new in (
        ("kernel", facts.kernel, made_of.kernel),
        ("crash kernel", facts.crash_kernel, made_of.crash_kernel),
    ):
        if old.sha256 != new.sha256:
            taken.append(f"the {what} is {ingredients.described(new)}; it was {old.release or 'never had'}")
    return Repeat(
        made_of,
        {
            "of": str(directory.absolute()),
            "started": facts.started,
            "differences": [*outlook.differences, *taken],
            "notes": list(outlook.notes),
        },
    )


def refuse(directory: Path, outlook: Outlook) -> MachineError:
    """The error that lists the differences."""
    lines = [_wrapped(f"  - {line}", "    ") for line in outlook.differences]
    return MachineError(
        "\n".join([f"{directory} can't be repeated as it was:", *lines]),
        hint="--anyway runs it with what there is; its result says what was different",
    )


def _of_this_machine(facts: Facts, cache: PackageCache, options: Options) -> tuple[list[str], tuple[str, ...]]:
    """Differences and notes by QEMU, the accelerator and the rig's own version."""
    differences, notes = [], []
    then, now = facts.environment.get("qemu", ""), qemu_version()
    if not then or parse_version(then) != parse_version(now):
        differences.append(f"QEMU is another: {then or 'unknown'} then, {now} now")
    elif then != now:
        notes.append(f"the same version of QEMU from another package: {then} then, {now} now")
    try:
        prepare.accelerator(facts.plan, options, cache.cache)
    except (MachineError, RequestError) as problem:
        differences.append(f"it ran under {options.accel}: {problem.message}")
    if facts.rig != rig.__version__:
        notes.append(f"rig {facts.rig} ran and judged it, this is rig {rig.__version__}")
    return differences, tuple(notes)


def _restore(
    plan: RunPlan, manifest: Manifest, cache: PackageCache, cancel: threading.Event
) -> tuple[list[Lost], list[str]]:
    """What is lost, after having fetched what has left the cache; and what went wrong with that.

    A package is asked for by its version. What else is unpacked or built lies below a hash of what it is made of, so
    gathering the same once more puts it where it lay. A kernel built from source can't come back: its build has the
    time of day in it.
    """
    root = cache.cache.root
    lost = ingredients.lost(manifest, root)
    gone = [one.path for one in lost if one.path.parts[0] == CACHE.name and not one.now]
    if not gone or any(path.parts[1] == "kernels" for path in gone):
        return lost, []
    packages = {path: package for path in gone if (package := _alone_in_its_tree(path, manifest))}
    troubles = [_trouble(functools.partial(cache.restore, package)) for package in dict.fromkeys(packages.values())]
    if len(packages) < len(gone):
        made_of = manifest.ingredients
        named = replace(
            plan,
            kernel=_pinned(plan.kernel, made_of.kernel.package),
            crash_kernel=_pinned(plan.crash_kernel, made_of.crash_kernel.package),
        )
        troubles.append(_trouble(lambda: prepare.gather(named, cache, cancel)))
    return ingredients.lost(manifest, root), [trouble for trouble in troubles if trouble]


def _alone_in_its_tree(path: Path, manifest: Manifest) -> PackageId | None:
    """The package of a file, unless others were unpacked to the same directory."""
    package = manifest.packages.get(str(path))
    return package if package and path.is_relative_to(CACHE / tree_of(package.name, package.sha256)) else None


def _trouble(attempt: Callable[[], object]) -> str:
    """What was said when it failed; empty when it didn't.

    :raise Cancelled: it was
    """
    try:
        attempt()
    except Cancelled:
        raise
    except (CouldNotJudge, RequestError) as problem:
        return problem.message
    return ""


def _pinned(kernel: Kernel, package: PackageId | None) -> Kernel:
    """The kernel by the very package that it was had by."""
    return replace(kernel, package=re.escape(package.name)) if kernel.package and package else kernel


def _told(lost: Sequence[Lost], manifest: Manifest, troubles: Sequence[str]) -> list[str]:
    """What is lost, a line for each package or file, and why it could not be fetched."""
    lines: dict[str, None] = {}
    for one in lost:
        then = manifest.sha256[str(one.path)]
        package = manifest.packages.get(str(one.path))
        state = f"has changed: sha256 {then[:12]}... then, {one.now[:12]}... now" if one.now else "is gone"
        if one.path.is_absolute():
            lines[f"{one.path} {state}"] = None
        elif one.path.parts[0] == OWN.name:
            lines[f"{one.today.name}, of the rig itself, {state}"] = None
        elif package is not None and not one.now:
            lines[f"{package} is no longer in the cache{'' if troubles else ', nor offered any more'}"] = None
        else:
            again = "; built again it would not be the same" if one.path.parts[1] == "kernels" else ""
            lines[f"{one.today} {state}{again}"] = None
    return [*lines, *(f"could not be fetched: {trouble}" for trouble in dict.fromkeys(troubles))]


def _put_together(facts: Facts, manifest: Manifest, made_of: Ingredients, options: Options) -> list[str]:
    """What this rig makes otherwise of the same files: the initramfs, command lines, QEMU's options."""
    told, plan = facts.environment, facts.plan
    found = []
    if prepare.keyless(plan, made_of) != manifest.initramfs:
        found.append("this rig makes another initramfs of the same files")
    lines = zip(
        ("cmdline", "crash_cmdline"),
        prepare.cmdlines(plan.guest, plan.scenario, made_of.kernel.release, plan.into),
        strict=True,
    )
    found += [f"{key} is another: {told[key]} then, {now} now" for key, now in lines if told.get(key, now) != now]
    if found or "argv" not in told:
        return found
    drive = Path("/disk") if plan.scenario.dump_to is DumpTo.DISK else None
    spec = prepare.machine(plan, made_of, options.accel, Path("/run"), drive)
    waited = told.get("template", {}).get("used", False)  # QEMU booted nothing: it went on from a template
    today = argv(replace(spec, initrd=None if waited else Path("/initrd")), Wiring(0, 0, 0, 0, 0), waiting=waited)
    then, now = (_comparable(words) for words in (told["argv"], today))
    if then != now:
        only = [" ".join(word for word in one if word not in other) for one, other in ((then, now), (now, then))]
        found.append(f"QEMU's options are others: {only[0] or 'none more'} then, {only[1] or 'none more'} now")
    return found


def _comparable(words: Sequence[str]) -> list[str]:
    """A QEMU command line without what differs from run to run, and what the guest does not see: the sandbox, and the
    monitor of a user who held it."""
    apart = {number for number, word in enumerate(words) if word.startswith(MONITOR) or word == SANDBOX}
    left_out = {*apart, *(number - 1 for number in apart)}  # with the options that they are values of
    return [
        "LOG" if before == _LOG else _PER_RUN.sub("FILE", word)
        for number, (before, word) in enumerate(zip(("", *words), words, strict=False))
        if number not in left_out
    ]


# ---------------------------------------------------------------- after


@dataclass(frozen=True)
class Change:
    """A verdict that is another than it was; empty where there was none. name: a check's, or RUN."""

    name: str
    before: str
    after: str


RUN = "the run"


def changes(before: RunResult, after: RunResult) -> list[Change]:
    """The verdicts that differ, the whole run's first."""
    old, new = (
        {RUN: result.verdict.value, **{check.name: check.verdict.value for check in result.checks}}
        for result in (before, after)
    )
    names = dict.fromkeys((*old, *new))
    pairs = ((name, old.get(name, ""), new.get(name, "")) for name in names)
    return [Change(name, was, now) for name, was, now in pairs if was != now]


def lines(told: Mapping[str, Any], changed: Sequence[Change]) -> list[str]:
    """For people: how this run compares with the one that it repeats."""
    out = []
    for key, what in (("differences", "not the same run"), ("notes", "note")):
        out += [_wrapped(f"{what}: {text}", "  ") for text in told[key]]
    if not changed:
        return [*out, f"verdicts: the same as in {told['of']}"]
    width = max(len(change.name) for change in changed)
    out.append(f"verdicts that are not those of {told['of']}:")
    return [*out, *(f"  {c.name:{width}}  {c.before or 'none'} -> {c.after or 'none'}" for c in changed)]


def _wrapped(text: str, indent: str) -> str:
    return "\n".join(wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))
