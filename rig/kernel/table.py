"""All symbols of a kernel, by address: some hundred thousand, of which a run wants a few.

So they stay as they are packed, addresses in an array and names in one text, and are not made into as many objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from rig.late import late

if TYPE_CHECKING:
    import numpy as np
    import zstandard
    from numpy.typing import NDArray
else:
    np, zstandard = late("numpy"), late("zstandard")

MOST = 1 << 28  # bytes of all symbols, unpacked: twenty times what a distribution's kernel has


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    """count: of symbols. marked: the addresses of the few that are looked for by their names."""

    count: int
    marked: dict[str, int]


class SymbolTable(Mapping[int, str]):
    """Address -> name, ascending."""

    def __init__(self, addresses: NDArray[np.uint64], names: bytes, marked: Mapping[str, int]) -> None:
        """names: a line each, in the order of the addresses. marked: name -> address of some."""
        self._addresses = addresses
        self._names = names
        self.marked = marked

    @classmethod
    def of(cls, found: Mapping[int, str], mark: Iterable[str] = ()) -> SymbolTable:
        """mark: the names to look for, now; of several symbols of the same name the first is taken."""
        addresses = sorted(found)
        wanted = set(mark)
        marked = {found[address]: address for address in reversed(addresses) if found[address] in wanted}
        names = "\n".join(found[address] for address in addresses).encode()
        return cls(np.array(addresses, np.uint64), names, marked)

    @classmethod
    def unpack(cls, packed: bytes) -> SymbolTable:
        """What pack() packed. ValueError when it is torn."""
        try:
            head, _, rest = zstandard.decompress(packed, max_output_size=MOST).partition(b"\n")
            told = msgspec.json.decode(head, type=_Head)
            addresses = np.frombuffer(rest, "<u8", told.count)
        except (zstandard.ZstdError, msgspec.MsgspecError, OverflowError) as problem:
            raise ValueError(str(problem)) from problem
        if (addresses[1:] <= addresses[:-1]).any():
            raise ValueError("the addresses are not in order")
        found = cls(addresses, rest[addresses.nbytes :], told.marked)
        if len(found._starts) != told.count + 1:
            raise ValueError(f"{told.count} addresses, {len(found._starts) - 1} names")
        return found

    def as_dict(self) -> dict[int, str]:
        """For who wants them all."""
        return dict(zip(self, self._names.decode().split("\n"), strict=True)) if len(self) else {}

    def pack(self) -> bytes:
        """zstd, with a checksum, of a line that says how many there are, the addresses (each a u64, little-endian)
        and the names."""
        head = msgspec.json.encode(_Head(len(self), dict(self.marked)))
        blob = head + b"\n" + self._addresses.astype("<u8").tobytes() + self._names
        return zstandard.ZstdCompressor(3, write_checksum=True).compress(blob)

    def moved(self, by: int) -> SymbolTable:
        """All of them so many bytes further up, or down, as KASLR moves a kernel."""
        marked = {name: (address + by) % (1 << 64) for name, address in self.marked.items()}
        found = SymbolTable(self._addresses + np.uint64(by % (1 << 64)), self._names, marked)
        found._starts = self._starts  # the same names
        return found

    def between(self, start: int, end: int) -> list[int]:
        """The addresses from `start` on, before `end`."""
        first, behind = np.searchsorted(self._addresses, np.array([start, end], np.uint64)).tolist()
        found: list[int] = self._addresses[first:behind].tolist()
        return found

    def around(self, addresses: Iterable[int]) -> Iterator[tuple[int, int | None, int]]:
        """Of the symbols that are the last ones at or before an address, ascending and once each: where it begins,
        where the next one does, if there is one, and the first of the addresses."""
        asked = np.unique(np.array([*addresses], np.uint64))
        behind = np.searchsorted(self._addresses, asked, side="right")
        indices, firsts = np.unique(behind, return_index=True)
        for index, first in zip(indices.tolist(), asked[firsts].tolist(), strict=True):
            if index:
                yield int(self._addresses[index - 1]), int(self._addresses[index]) if index < len(self) else None, first

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        """Where each name begins, and where one more would."""
        if not self._names and not len(self._addresses):
            return np.zeros(1, np.intp)
        ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == ord("\n"))
        return np.concatenate(([0], ends + 1, [len(self._names) + 1]))

    def _name(self, index: int) -> str:
        start, end = self._starts[index : index + 2].tolist()
        return self._names[start : end - 1].decode()

    def __getitem__(self, address: int) -> str:
        index = int(np.searchsorted(self._addresses, np.uint64(address)))
        if index == len(self) or int(self._addresses[index]) != address:
            raise KeyError(address)
        return self._name(index)

    def __iter__(self) -> Iterator[int]:
        return iter(self._addresses.tolist())

    def __len__(self) -> int:
        return len(self._addresses)
