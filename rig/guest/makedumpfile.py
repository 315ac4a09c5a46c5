"""makedumpfile, as the crash kernel's user space runs it: what a scenario may ask of it, and the command."""

from __future__ import annotations

import re
import shlex

PROGRAM = "/usr/bin/makedumpfile"  # only for runs whose dump it filters: it loads many libraries
DEFAULT = "-E -d 31"  # the level that distributions set up
# Format: -E is ELF; -c and -l are its own, kdump-compressed, with zlib or LZO; none is its own without compression.
# What it knows besides, snappy and zstd, Debian's build hasn't got. Level: the sum of what is left out, 1 for pages of
# zeroes (which its own format stores once for all), 31 for all that it can tell apart.
VALID = "[-E|-c|-l] [-d LEVEL], in this order, with a LEVEL from 0 to 31"
_LEVEL = r"-d (?:[12]?[0-9]|3[01])"
_VALID = re.compile(rf"|-[Ecl]|{_LEVEL}|-[Ecl] {_LEVEL}")


def complaint(options: str) -> str:
    """What is wrong with a scenario's `dump_options`; empty when nothing is."""
    return "" if _VALID.fullmatch(" ".join(options.split())) else f"{options!r} is not valid; valid: {VALID}"


def command(options: str, vmcore: str) -> str:
    """-F: for output that can't seek. --message-level 6: errors, and what it says about options that it refuses."""
    return shlex.join([PROGRAM, "-F", *(options or DEFAULT).split(), "--message-level", "6", vmcore])


def filters(options: str) -> bool:
    """Whether anything is left out, for which makedumpfile needs VMCOREINFO. Its own default is level 0."""
    level = re.search(_LEVEL, options or DEFAULT)
    return level is not None and level[0] != "-d 0"
