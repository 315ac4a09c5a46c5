"""Physical memory, as page walks see it."""

from __future__ import annotations

from typing import Protocol

VGA_TEXT = (0xB8000, 0xC0000)  # physical: the CGA, EGA and VGA text window, which is no RAM


class OutsideMemory(LookupError):
    """A physical address that a Memory does not have."""

    def __init__(self, address: int) -> None:
        super().__init__(f"physical address {address:#x} is outside memory")
        self.address = address


class Memory(Protocol):
    """Physical memory."""

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes from a physical address. Raises OutsideMemory for the first that is not there."""
        ...
