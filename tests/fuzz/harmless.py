"""What text on a terminal, and pages, must not hold."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from rig.errors import RigError
from rig.report.wording import printable_lines

_STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def require_harmless(text: str) -> None:
    """No control character but line ends, and no bidirectional override: a terminal takes it for nothing but text."""
    found = _STEERING.search(text)
    assert found is None, f"{found[0]!r} in {text[max(0, found.start() - 60) : found.end() + 20]!r}"


def require_inert(page: str) -> None:
    """None of the markup in edits.VALUES is in an HTML page as markup."""
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert 'href="javascript:' not in page


@contextlib.contextmanager
def own_errors(*kinds: type[RigError]) -> Iterator[None]:
    """Those that the rig's reader documents, and whose words are harmless and no longer than a screen or two."""
    try:
        yield
    except kinds as problem:
        text = "\n".join(printable_lines(str(problem)))
        require_harmless(text)
        assert len(text) < 20_000, f"an error of {len(text)} characters"
