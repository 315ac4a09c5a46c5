"""What text of the catalogue, or of somebody's evidence, may be where it becomes part of another language: QEMU's
options, a kernel's command line, the names of packages and files. Pure.

Most of these languages have no way to quote. What goes to the guest's shell is quoted there, whatever it is.
"""

from __future__ import annotations

from pathlib import Path

from rig.model import Arch, Guest, Kernel, PackageId, Scenario
from rig.rules import Table, each, fits, matches, optional

# Of a file's name: nothing that leads out of a directory, or looks like an option.
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_LETTERS = "a name: letters, digits, dot, underscore and minus; a letter or digit first"
_SMALL = "a package's name: small letters, digits, plus, minus and dot"
_NAME = matches(_PART, _LETTERS)
_TEMPLATE = matches(r"(?:{flavour}|[A-Za-z0-9])(?:{flavour}|[A-Za-z0-9._-])*", f"{_LETTERS}, or {{flavour}}")
# Debian policy 5.6.1, 5.6.12
_PACKAGE = matches(r"[a-z0-9][a-z0-9+.-]+", _SMALL)
_HEADERS = matches(r"[a-z0-9](?:{release}|[a-z0-9+.-])*", f"{_SMALL}, or {{release}}")
_VERSION = matches(r"[0-9][A-Za-z0-9.+:~-]*", "a package's version")
_SHA256 = matches(r"[0-9a-f]*", "a package's sha256")
_ARCHITECTURE = fits((*Arch, "all").__contains__, "a package's architecture")
# QEMU: other properties of a machine than flags can name files, to be read or written.
_MACHINE = matches(r"[a-z0-9][a-z0-9._-]*(?:,[a-z0-9-]+=(?:on|off|auto))*", "a machine type: TYPE[,FLAG=on|off|auto]")
_CPU = matches(rf"{_PART}(?:,[+-]?{_PART}(?:=[A-Za-z0-9._-]+)?)*", "a CPU model: MODEL[,+FLAG][,-FLAG][,NAME=VALUE]")
_WORD = matches(r"[!-~]*", "one word of a command line")
# Newlines end a command line for the boot protocol's tools, and a line of the guest's shell.
_LINE = matches(r"[ -~]*", "a command line: printable ASCII")
_STAYS = fits(lambda path: ".." not in path.parts, "a path that stays in its directory")

RULES: Table = {
    Guest: {
        "flavour": _NAME,
        "machine": _MACHINE,
        "cpu": _CPU,
        "crashkernel": _WORD,
        "cmdline": _LINE,
        "crash_cmdline": _LINE,
        "hypervisor": optional(_PACKAGE),
        "hypervisor_cmdline": _LINE,
    },
    Scenario: {"cmdline": _LINE, "crash_cmdline": _LINE, "crashkernel": _WORD},
    Kernel: {
        "flavours": each(_NAME),
        "headers": optional(_HEADERS),
        "source": optional(_PACKAGE),
        "config": each(_TEMPLATE),
        "patch": optional(_NAME),
    },
    # What a run was made of.
    PackageId: {"name": _PACKAGE, "version": _VERSION, "sha256": _SHA256, "arch": _ARCHITECTURE},
    type(Path()): {"": _STAYS},  # pathlib makes a Path of the machine's own kind
}
