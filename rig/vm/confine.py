"""What a QEMU may do to the machine that it runs on, narrowed before it starts.

A guest is untrusted code, and QEMU is what stands between it and the user's files. QEMU's own seccomp filter keeps it
from starting programs; this file, run as a program, takes away the rest and then becomes QEMU:

    confine.py DIRECTORY... -- COMMAND...

Refused by Landlock, as far as the kernel has it, is writing outside of the DIRECTORYs (since 5.13), TCP connections and
TCP ports of its choice (6.7), signals to other processes (6.12), and looking into the user's others (/proc/PID/fd,
ptrace): Documentation/userspace-api/landlock.rst. Root loses all capabilities but those to pass file permissions. Of
the environment only KEPT is left.

It imports nothing of rig, and little else: it is run before each QEMU, without site-packages.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Sequence

KEPT = ("PATH", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR", "LANG", "LC_ALL", "TMPDIR")
DEVICES = ("/dev/null", "/dev/kvm")  # written to, and outside of any directory that is QEMU's

# System calls: the same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
# linux/landlock.h: LANDLOCK_ACCESS_FS_*
_WRITE_FILE, _REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK = (1 << bit for bit in (1, 4, 5, 7, 8, 9))
_MAKE_OTHERS = 1 << 6 | 1 << 10 | 1 << 11 | 1 << 12  # character devices, FIFOs, block devices, symbolic links
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1
_RULE_PATH_BENEATH, _RULE_NET_PORT = 1, 2
_VERSION = 1 << 0  # LANDLOCK_CREATE_RULESET_VERSION
_ABI_REFER, _ABI_TRUNCATE, _ABI_NET, _ABI_SCOPE = 2, 3, 4, 6  # the version of the interface that brought each
_CAPABILITIES_V3 = 0x20080522  # linux/capability.h
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1 << 1, 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


def landlock() -> int:
    """The version of this kernel's Landlock, 0 when it has none or it is switched off."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)))


def handled(abi: int) -> tuple[int, int, int]:
    """What is refused where no rule allows it, as far as that version knows it: struct landlock_ruleset_attr."""
    files = _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_OTHERS
    files |= (_REFER if abi >= _ABI_REFER else 0) | (_TRUNCATE if abi >= _ABI_TRUNCATE else 0)
    net = _BIND_TCP | _CONNECT_TCP if abi >= _ABI_NET else 0
    scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if abi >= _ABI_SCOPE else 0
    return files, net, scoped


def restrict(abi: int, directories: Sequence[str]) -> None:
    """No writing but in these directories and to DEVICES, no TCP but a port that the kernel chooses, for good.

    Files there, and sockets; neither devices nor links. What is open already stays usable. OSError when refused.
    """
    attributes = handled(abi)
    files, net, _ = attributes
    words = 1 if abi < _ABI_NET else 2 if abi < _ABI_SCOPE else 3  # older kernels know a shorter structure
    packed = struct.pack(f"={words}Q", *attributes[:words])
    ruleset = _call(_CREATE_RULESET, packed, len(packed), 0)
    own = (_WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _MAKE_SOCK | _TRUNCATE) & files
    device = (_WRITE_FILE | _TRUNCATE) & files
    present = [(name, device) for name in DEVICES if os.path.exists(name)]
    for path, allowed in (*((directory, own) for directory in directories), *present):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", allowed, fd), 0)
        os.close(fd)
    if net:
        _call(_ADD_RULE, ruleset, _RULE_NET_PORT, struct.pack("=QQ", _BIND_TCP, 0), 0)
    _call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def drop_capabilities() -> None:
    """Root's, but those to pass file permissions: the results may be another user's. With no new privileges, which
    must be set, exec does not bring them back (cap_bprm_creds_from_file() in the kernel's security/commoncap.c)."""
    if os.geteuid() != 0:
        return
    header = struct.pack("=Ii", _CAPABILITIES_V3, 0)  # of this process
    kept = (_DAC_OVERRIDE | _DAC_READ_SEARCH) & _permitted()
    # effective, permitted, inheritable; then their upper halves
    if _libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "the capabilities can't be dropped")


def _permitted() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapPrm:"))


def _call(number: int, *arguments: object) -> int:
    done = int(_libc.syscall(number, *(ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)))
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return done


def main(words: Sequence[str]) -> None:
    """Does not return: it becomes the command. OSError when it can't."""
    end = words.index("--")
    directories, command = words[:end], words[end + 1 :]
    os.umask(0o077)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no new privileges can't be set")
    if abi := landlock():
        restrict(abi, directories)
    drop_capabilities()
    os.execvpe(command[0], list(command), {name: os.environ[name] for name in KEPT if name in os.environ})


if __name__ == "__main__":
    main(sys.argv[1:])
