"""A template, its styles and its script -> one HTML file that needs nothing else, and can run nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

BASE_CSS = "base.css"


def render(template: str, styles: Sequence[str] = (), scripts: Sequence[str] = (), **values: object) -> str:
    """The page of `template`, which extends base.html.j2. styles, scripts: files beside it, put into the page.

    Values are escaped. The content security policy names the page's own style and script by their hashes: markup that
    got in nevertheless could neither run nor load anything (W3C, CSP level 3). Style attributes alone are allowed.
    """
    css = "".join(map(_read, (BASE_CSS, *styles)))
    script = "".join(map(_read, scripts))
    # the package's own files, not a run's
    own = {"css": Markup(css), "script": Markup(script)}  # nosec B704
    return _environment().get_template(template).render(policy=_policy(css, script), **own, **values)


def compile_templates() -> None:
    """Those of the pages that a run writes, once for this process: the first page then comes as quickly as the next."""
    for file in resources.files(__package__).iterdir():
        if file.name.endswith(".j2") and not file.name.startswith("compare"):
            _environment().get_template(file.name)


def _policy(css: str, script: str) -> str:
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data:"]
    rules += [f"style-src-elem {_hash(css)}", "style-src-attr 'unsafe-inline'"]
    return "; ".join([*rules, f"script-src {_hash(script)}"] if script else rules)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> Environment:
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=FunctionLoader(_read),
    )


@cache
def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
