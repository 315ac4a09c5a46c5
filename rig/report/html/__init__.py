"""HTML pages that need nothing else: no network, styles and scripts inside."""

from __future__ import annotations

from rig.model import RunResult
from rig.report.html.render import render
from rig.report.html.view import EvidenceView, build_page
from rig.report.listing import Listing

__all__ = ["EvidenceView", "render_run"]


def render_run(result: RunResult, evidence: EvidenceView, listing: Listing | None = None) -> str:
    """The report of one run, to be written beside its evidence: links are relative to that directory.

    listing: of its hand-over; None when it has no trace.

    Everything that comes from the run is escaped; what a guest printed is shown as text, control characters
    by their codes.
    """
    return render("run.html.j2", ["run.css"], page=build_page(result, evidence, listing))
