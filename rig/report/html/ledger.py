"""The ledger of memory-accounted: how much changed between checkpoints, and by owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rig.model import PAGE_SIZE, CheckResult
from rig.report.html.page import Fact, Sources, shown
from rig.report.html.pages import Pages
from rig.report.wording import integer, number, printable, records

ADDRESSES_SHOWN = 6


@dataclass(frozen=True)
class Address:
    """href: of the page's bytes; empty when they aren't in the page."""

    text: str
    href: str


@dataclass(frozen=True)
class OwnerRow:
    """more: the addresses that don't fit, to be folded. href: of the later checkpoint's pages."""

    owner: str
    bytes: str
    pages: str
    interval: str
    addresses: list[Address]
    more: list[Address]
    writers: str
    href: str


@dataclass(frozen=True)
class IntervalRow:
    start: str
    end: str
    bytes: str
    pages: str
    href: str


@dataclass(frozen=True)
class Ledger:
    facts: list[Fact]
    intervals: list[IntervalRow]
    owners: list[OwnerRow]


def ledger(check: CheckResult | None, pages: Pages, sources: Sources) -> Ledger | None:
    """None when the run has no such check, or it was not judged."""
    if check is None or not check.figures:
        return None
    told = sources.href("result.json")
    facts = []
    if (changed := integer(check.figures, "bytes_changed")) is not None:
        facts.append(Fact("Bytes changed outside the crash region", number(changed), href=told))
    if (inside := integer(check.figures, "crash_region_bytes")) is not None:
        facts.append(Fact("In it, up to the hand-over", number(inside), href=told))
    unaccounted = check.figures.get("unaccounted")
    if unaccounted is not None:
        facts.append(Fact("Without an owner", _amount(unaccounted), href=told))
    return Ledger(
        facts,
        [
            IntervalRow(
                start=_text(row, "from"),
                end=_text(row, "to"),
                bytes=_text(row, "bytes"),
                pages=_text(row, "pages"),
                href=_pages_of(row.get("to"), sources),
            )
            for row in records(check.figures, "intervals")
        ],
        [_owner_row(row, pages, sources) for row in records(check.figures, "owners")],
    )


def _text(row: Mapping[str, Any], key: str) -> str:
    return printable(shown(row.get(key, "")))


def _pages_of(checkpoint: object, sources: Sources) -> str:
    return sources.href(f"memory/{checkpoint}.pages.zst")


def _amount(value: object) -> str:
    """A count as it is, of a list its length."""
    if isinstance(value, list | tuple):
        return number(len(value))
    return number(value) if isinstance(value, int) else printable(shown(value))


def _owner_row(row: Mapping[str, Any], pages: Pages, sources: Sources) -> OwnerRow:
    listed = row.get("addresses")
    interval = printable(str(row.get("interval", ""))).replace("->", "→")
    addresses = [_address(value, interval, pages) for value in (listed if isinstance(listed, list | tuple) else [])]
    writers = row.get("writers")
    return OwnerRow(
        owner=printable(str(row.get("owner", "?"))),
        bytes=_amount(row.get("bytes", "")),
        pages=_amount(row.get("pages", "")),
        interval=interval,
        addresses=addresses[:ADDRESSES_SHOWN],
        more=addresses[ADDRESSES_SHOWN:],
        writers=", ".join(f"{printable(str(k))} ({_amount(v)})" for k, v in writers.items())
        if isinstance(writers, Mapping)
        else "",
        href=_pages_of(interval.rpartition(" ")[2], sources),
    )


def _address(value: object, interval: str, pages: Pages) -> Address:
    """value: an address, or "0x9c002+2" as the check writes it."""
    text = f"{value:#x}" if isinstance(value, int) else printable(shown(value))
    try:
        page = int(text.partition("+")[0], 16) & ~(PAGE_SIZE - 1)
    except ValueError:
        return Address(text, "")
    return Address(text, pages.href(interval, page))
