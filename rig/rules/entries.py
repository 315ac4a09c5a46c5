"""What one entry of the catalogue must keep to on its own, beyond its types. Pure but for whether files are there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rig.guest import makedumpfile
from rig.model import MOST_MEMORY, Arch, Dump, DumpTo, Guest, Kernel, Scenario, Selection, Until, Verdict
from rig.rules import own, words
from rig.sabotage import parameter_complaint

_SUITE = re.compile(r"[a-z][a-z0-9-]*")


def complaints(entry: Guest | Kernel | Scenario | Selection) -> Iterable[tuple[str, str]]:
    """(key, what is wrong with its value), for one entry on its own."""
    yield from own(entry, words.RULES)
    if isinstance(entry, Guest):
        if entry.memory < 64:
            yield "memory", f"{entry.memory} MiB is less than any kernel boots in (64 MiB)"
        if entry.memory > MOST_MEMORY:
            yield "memory", f"{entry.memory} MiB is more than a guest may have ({MOST_MEMORY} MiB)"
        if entry.cpus < 1:
            yield "cpus", f"{entry.cpus} is less than one"
        if entry.hypervisor and entry.arch is not Arch.AMD64:
            yield "hypervisor", f"there are hypervisors for {Arch.AMD64} only"
        if entry.hypervisor_cmdline and not entry.hypervisor:
            yield "hypervisor_cmdline", "there is no hypervisor"
    elif isinstance(entry, Kernel):
        yield from _kernel_complaints(entry)
    elif isinstance(entry, Scenario):
        yield from _scenario_complaints(entry)


def _kernel_complaints(kernel: Kernel) -> Iterable[tuple[str, str]]:
    if sum([bool(kernel.package), bool(kernel.source), kernel.image is not None]) != 1:
        yield "package", "exactly one of package, source and image must be given"
    if kernel.suite and not _SUITE.fullmatch(kernel.suite):
        yield "suite", f"{kernel.suite!r} is no suite's name, like bullseye or bookworm-backports"
    if kernel.suite and kernel.image is not None:
        yield "suite", "only with package or source"
    if kernel.source and not kernel.config:
        yield "config", "a kernel built from source needs at least one fragment"
    for key, given in (("config", bool(kernel.config)), ("patch", bool(kernel.patch))):
        if given and not kernel.source:
            yield key, "only with source"
    try:
        re.compile(kernel.package.replace("{flavour}", "amd64"))
    except re.error as error:
        yield "package", f"not a regular expression: {error}"
    for key, path in (("image", kernel.image), ("vmlinux", kernel.vmlinux)):
        if path is not None and not path.is_file():
            yield key, f"no such file: {path}"


def _scenario_complaints(scenario: Scenario) -> Iterable[tuple[str, str]]:
    for key, names in (("checks", scenario.checks), ("guests", scenario.guests)):
        if len(set(names)) < len(names):
            yield key, "a name is listed twice"
    if scenario.expect not in (Verdict.PASS, Verdict.FAIL):
        yield "expect", f"{scenario.expect.value!r} can't be expected; valid: fail, pass"
    if (scenario.expect is Verdict.FAIL) != bool(scenario.expect_failed):
        yield "expect_failed", 'must name the checks that fail when expect = "fail", and only then'
    if scenario.until is Until.HANDOVER and scenario.dump is not Dump.HEADERS:
        yield "until", f"there is no dump to take at the hand-over: dump = {scenario.dump.value!r}"
    if scenario.hops < 0:
        yield "hops", f"{scenario.hops} is less than none"
    if scenario.dump_options and scenario.dump is not Dump.MAKEDUMPFILE:
        yield "dump_options", f"only with dump = {Dump.MAKEDUMPFILE.value!r}"
    elif complaint := makedumpfile.complaint(scenario.dump_options):
        yield "dump_options", complaint
    if scenario.dump_to is not DumpTo.SSH and scenario.dump is Dump.HEADERS:
        yield "dump_to", "only with a whole dump: dump = 'raw' or 'makedumpfile'"
    if complaint := parameter_complaint(scenario.parameters):
        yield "sabotage", complaint
