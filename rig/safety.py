"""What a value of the catalogue, or of somebody's evidence, may be where it becomes part of another language: QEMU's
options, a kernel's command line, the names of packages and files. Pure.

Most of these languages have no way to quote. What goes to the guest's shell is quoted there, whatever it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rig.model import Arch, Guest, Kernel, PackageId, Scenario, Selection

_PART = (
    r"[A-Za-z0-9][A-Za-z0-9._-]*"  # of a file's name: nothing that leads out of a directory, or looks like an option
)
_NAME = (re.compile(_PART), "a name: letters, digits, dot, underscore and minus; a letter or digit first")
_TEMPLATE = (re.compile(r"(?:{flavour}|[A-Za-z0-9])(?:{flavour}|[A-Za-z0-9._-])*"), _NAME[1] + ", or {flavour}")
# Debian policy 5.6.1, 5.6.12
_PACKAGE = (re.compile(r"[a-z0-9][a-z0-9+.-]+"), "a package's name: small letters, digits, plus, minus and dot")
_HEADERS = (re.compile(r"[a-z0-9](?:{release}|[a-z0-9+.-])*"), _PACKAGE[1] + ", or {release}")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+:~-]*")
_SHA256 = re.compile(r"[0-9a-f]*")
# QEMU: other properties of a machine than flags can name files, to be read or written.
_MACHINE = (
    re.compile(r"[a-z0-9][a-z0-9._-]*(?:,[a-z0-9-]+=(?:on|off|auto))*"),
    "a machine type: TYPE[,FLAG=on|off|auto]",
)
_CPU = (
    re.compile(rf"{_PART}(?:,[+-]?{_PART}(?:=[A-Za-z0-9._-]+)?)*"),
    "a CPU model: MODEL[,+FLAG][,-FLAG][,NAME=VALUE]",
)
_WORD = (re.compile(r"[!-~]*"), "one word of a command line")
# Newlines end a command line for the boot protocol's tools, and a line of the guest's shell.
_LINE = (re.compile(r"[ -~]*"), "a command line: printable ASCII")

_Rule = tuple[re.Pattern[str], str]
_GUEST: Mapping[str, _Rule] = {
    "flavour": _NAME,
    "machine": _MACHINE,
    "cpu": _CPU,
    "crashkernel": _WORD,
    "cmdline": _LINE,
    "crash_cmdline": _LINE,
    "hypervisor": _PACKAGE,
    "hypervisor_cmdline": _LINE,
}
_SCENARIO: Mapping[str, _Rule] = {"cmdline": _LINE, "crash_cmdline": _LINE, "crashkernel": _WORD}
_KERNEL: Mapping[str, _Rule] = {
    "flavours": _NAME,
    "headers": _HEADERS,
    "source": _PACKAGE,
    "config": _TEMPLATE,
    "patch": _NAME,
}


def complaints(entry: Guest | Kernel | Scenario | Selection) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with its value). An empty value is none."""
    rules = {Guest: _GUEST, Kernel: _KERNEL, Scenario: _SCENARIO}.get(type(entry), {})
    for key, (pattern, valid) in rules.items():
        value = getattr(entry, key)
        for text in (value,) if isinstance(value, str) else value:
            if text and not pattern.fullmatch(text):
                yield key, f"{text!r} is not {valid}"


def manifest_complaints(paths: Iterable[str], packages: Iterable[PackageId]) -> Iterator[str]:
    """Of what a run was made of. paths: as a manifest has them, relative to the cache or absolute."""
    for path in paths:
        if ".." in Path(path).parts:
            yield f"manifest: {path!r} leads out of its directory"
    for package in packages:
        for key, value, pattern in (
            ("name", package.name, _PACKAGE[0]),
            ("version", package.version, _VERSION),
            ("sha256", package.sha256, _SHA256),
        ):
            if not pattern.fullmatch(value):
                yield f"manifest: {value!r} is no package's {key}"
        if package.arch not in (*Arch, "all"):
            yield f"manifest: {package.arch!r} is no package's architecture"
