"""Taking the dump in the crash kernel's user space: its front, and the whole of it as a user would."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import IO

from rig.errors import EvidenceError, GuestHung, NotOffered
from rig.evidence import DOM0, FILTERED_HEADERS, HEADERS, PGD
from rig.evidence import VMCORE as KEPT
from rig.evidence.writer import EvidenceWriter
from rig.facts import Transfer
from rig.guest import disk, makedumpfile, ssh
from rig.guest.keys import RunKeys
from rig.guest.ssh import GuestSsh
from rig.memory import kdump, vmcore
from rig.memory.dump import DumpHashes, Flattened, Words, cut, file_size
from rig.model import PAGE_SIZE, Dump, DumpTo, Options, Scenario
from rig.vm.deadline import Deadline
from rig.vm.qemu import Vm
from rig.vm.shell import Shell

Read = Callable[[int, int], bytes]  # offset in a dump, size
Listener = Callable[[str], None]

VMCORE = "/proc/vmcore"
FIRST_READ = 16384  # bytes of /proc/vmcore that usually hold all its headers
RAW = f"dd if={VMCORE} bs=1M"
# Bytes a second that a transfer must reach. Under TCG it does 5 to 10 MB/s where a core is free, 2 on a machine with
# four times the load it has cores for. /proc/vmcore alone reads at 190 MB/s there: the time goes into SSH and the
# network. dropbear offers paramiko no cipher that is cheaper than the aes128-ctr they agree on.
SLOWEST = 1 << 20
# Pieces kept for a closer look: 16 MiB. A dump that differs in more is not what anybody will go through by hand.
KEEP = 4096
_NEWS = 5.0  # seconds between two words on how far it is
_MIB = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where the output of a command in the crash kernel comes out, in parts. protection: as in Transfer."""

    via: DumpTo
    parts: Callable[[str, Deadline], Generator[bytes, None, None]]
    protection: str = ""


@dataclass(frozen=True)
class Whole:
    """A dump taken whole. differing: physical addresses of the pages to keep from `panic`."""

    transfer: Transfer
    differing: tuple[int, ...]


def log_in(
    vm: Vm, keys: RunKeys, no_network: str, stack: contextlib.ExitStack, deadline: Deadline
) -> tuple[GuestSsh | None, str]:
    """A session with the crash kernel's SSH server, or None and the reason. no_network: known already."""
    if no_network:
        return None, no_network
    # half the time: the console must still have its chance
    patience = Deadline.after(deadline.left / 2, "the crash kernel's SSH server")
    try:
        return stack.enter_context(ssh.connect(vm.ssh_port, keys, patience, vm.watch)), ""
    except GuestHung as problem:
        return None, problem.message


def fetch_front(read: Read, pgd: int, writer: EvidenceWriter) -> vmcore.VmcoreHeaders:
    """The headers of /proc/vmcore, and the pgd's page (at a physical address) as it shows it, into the evidence.

    Raises EvidenceError when the dump doesn't hold that page.
    """
    blob = _headers(read, FIRST_READ)
    writer.write(HEADERS, blob)
    headers = vmcore.parse_headers(blob)
    try:
        offset = headers.offset_of(pgd)
    except LookupError as problem:
        raise EvidenceError(f"the dump does not hold the pgd's page {pgd:#x}: {problem}") from problem
    writer.write(PGD, read(offset, PAGE_SIZE))
    return headers


def fetch_dom0(read: Read, headers: vmcore.VmcoreHeaders, vmcoreinfo: tuple[int, int], writer: EvidenceWriter) -> None:
    """What the dump holds at dom0's vmcoreinfo (machine address, bytes), into the evidence; nothing when it isn't in
    the dump. Of it one page, since the next one may lie elsewhere in the machine."""
    address, size = vmcoreinfo
    with contextlib.suppress(LookupError):
        offset = headers.offset_of(address)
        writer.write(DOM0, read(offset, min(size, PAGE_SIZE - address % PAGE_SIZE)))


def require_filterable(scenario: Scenario, headers: vmcore.VmcoreHeaders) -> None:
    """Of a machine that a hypervisor ran: can makedumpfile tell dom0's pages apart?

    :raise NotOffered: it has nothing to go by, and would refuse
    """
    wants = scenario.dump is Dump.MAKEDUMPFILE and makedumpfile.filters(scenario.dump_options)
    if wants and not headers.vmcoreinfo:
        raise NotOffered("the dump of a hypervisor has no VMCOREINFO of dom0's, and makedumpfile filters by it")


def over_ssh(session: GuestSsh) -> Source:
    """The dump as the output of a command that the crash kernel's SSH server runs."""
    return Source(DumpTo.SSH, session.stream, session.protection)


def over_disk(shell: Shell, file: IO[bytes]) -> Source:
    """The dump written to the guest's disk first, and read from that disk's file."""

    def parts(command: str, deadline: Deadline) -> Generator[bytes, None, None]:
        yield from disk.read(file, disk.write(shell, command, deadline))

    return Source(DumpTo.DISK, parts)


def take(
    scenario: Scenario,
    source: Source,
    headers: vmcore.VmcoreHeaders,
    at_panic: Callable[[Words], Words],
    writer: EvidenceWriter,
    listener: Listener,
    options: Options,
) -> Whole:
    """The whole dump, raw or filtered; of it, hashes and what differs go into the evidence, or all of it.

    headers: of /proc/vmcore. at_panic: hashes of the pages at physical addresses. It gets a phase's deadline, and the
    time that its size is worth at SLOWEST. A dump that ends too early is recorded as it came.
    """
    raw = scenario.dump is Dump.RAW
    command = RAW if raw else makedumpfile.command(scenario.dump_options, VMCORE)
    size = file_size(headers.loads)
    deadline = Deadline.after(options.deadline + size / SLOWEST, f"`{command}` to end")
    started = time.monotonic()
    meter = _Meter(listener, size, scenario.dump)
    with contextlib.closing(source.parts(command, deadline)) as stream:
        parts = meter.count(stream)
        if raw:
            found = _take_raw(parts, headers, at_panic, writer, options.keep_dump)
        else:
            found = _take_filtered(parts, at_panic, writer, options.keep_dump)
    seconds = round(time.monotonic() - started, 3)
    writer.write_dump(found.hashes, found.kept)
    transfer = Transfer(command, meter.bytes, seconds, source.protection, source.via)
    return Whole(transfer, tuple(found.kept_pages))


def _headers(read: Read, first: int) -> bytes:
    """All headers of a dump, of which usually `first` bytes are enough."""
    front = read(0, first)
    size = vmcore.headers_size(front)
    return front[:size] if size <= len(front) else read(0, size)


def _take_raw(
    parts: Iterator[bytes],
    headers: vmcore.VmcoreHeaders,
    at_panic: Callable[[Words], Words],
    writer: EvidenceWriter,
    keep: bool,
) -> DumpHashes:
    """Hashed on its way, and not held unless it is to be kept."""
    found = _begin(headers, at_panic)
    with writer.create(KEPT) if keep else open(os.devnull, "wb") as copy:
        for part in parts:
            copy.write(part)
            found.feed(part)
    return found


def _take_filtered(
    parts: Iterator[bytes], at_panic: Callable[[Words], Words], writer: EvidenceWriter, keep: bool
) -> DumpHashes:
    """makedumpfile writes its headers when it knows what is in the dump: a file on disk holds it until then."""
    with writer.create(KEPT) if keep else tempfile.TemporaryFile(dir=writer.path) as spool:
        flat = Flattened()
        for part in parts:
            for offset, blob in flat.feed(part):
                spool.seek(offset)
                spool.write(blob)
        if not flat.complete:
            raise EvidenceError("the output of makedumpfile ends before its own mark of the end")

        def read(offset: int, size: int) -> bytes:
            spool.seek(offset)
            return spool.read(size)

        is_kdump = read(0, len(kdump.SIGNATURE)) == kdump.SIGNATURE
        return (_read_kdump if is_kdump else _read_elf)(read, at_panic, writer)


def _read_elf(read: Read, at_panic: Callable[[Words], Words], writer: EvidenceWriter) -> DumpHashes:
    blob = _headers(read, _MIB)
    writer.write(FILTERED_HEADERS, blob)
    found = _begin(vmcore.parse_headers(blob), at_panic)
    for offset in itertools.count(0, _MIB):
        chunk = read(offset, _MIB)
        if not chunk:
            return found
        found.feed(chunk)
    raise AssertionError("unreachable: count() does not end")


def _read_kdump(read: Read, at_panic: Callable[[Words], Words], writer: EvidenceWriter) -> DumpHashes:
    blob = read(0, kdump.front_size(read(0, 2 * PAGE_SIZE)))
    writer.write(FILTERED_HEADERS, blob)
    dump = kdump.parse_front(blob)
    found = _begin(dump.headers, at_panic)
    for page in kdump.pages(read, dump):
        found.feed(page)
    return found


def _begin(headers: vmcore.VmcoreHeaders, at_panic: Callable[[Words], Words]) -> DumpHashes:
    pieces = cut(headers.loads)
    return DumpHashes(pieces, at_panic(pieces.address), KEEP)


class _Meter:
    """Counts what goes by, and every few seconds tells how much it was."""

    def __init__(self, listener: Listener, size: int, kind: Dump) -> None:
        """size: of /proc/vmcore, bytes."""
        self.bytes = 0
        self._listener = listener
        of = f"of {size // _MIB} MiB" if kind is Dump.RAW else f"MiB, left by makedumpfile of {size // _MIB} MiB"
        self._words = f"of the dump have come {{}} {of}"
        self._told = time.monotonic()

    def count(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            self.bytes += len(part)
            if time.monotonic() >= self._told + _NEWS:
                self._told = time.monotonic()
                self._listener(f"note: {self._words.format(self.bytes // _MIB)}")
            yield part
