"""HTML pages that need nothing else: no network, styles and scripts inside."""

from __future__ import annotations

from rig.evidence.reader import Evidence
from rig.model import RunResult
from rig.report.html.render import render
from rig.report.html.view import build_page
from rig.report.listing import Listing

__all__ = ["render_run"]


def render_run(result: RunResult, evidence: Evidence, listing: Listing | None = None) -> str:
    """The report of one run, to be written beside its evidence: links are relative to that directory.

    listing: of its hand-over; None when it has no trace.

    Everything that comes from the run is escaped; what a guest printed is shown as text, control characters
    by their codes. What of the evidence is missing or torn is left out, and named.
    """
    return render("run.html.j2", ["run.css"], ["run.js"], page=build_page(result, evidence, listing))
