"""One run as one HTML file that needs nothing else: no network, no script, styles inside."""

from __future__ import annotations

from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from rig.model import RunResult
from rig.report.html.view import EvidenceView, build_page
from rig.report.listing import Listing

__all__ = ["EvidenceView", "render_run"]


def render_run(result: RunResult, evidence: EvidenceView, listing: Listing | None = None) -> str:
    """The report of one run, to be written beside its evidence: links are relative to that directory.

    listing: of its hand-over; None when it has no trace.

    Everything that comes from the run is escaped; what a guest printed is shown as text, control characters
    by their codes.
    """
    return _template().render(page=build_page(result, evidence, listing), css=Markup(_read("run.css")))


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(_read("run.html.j2"))


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
