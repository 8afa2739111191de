"""What pages are made in: their templates, their style, and their scripts with the hashes by which these may run."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.common.text import visible
from pipeline.look.report.colors import ROLES


@dataclass(frozen=True)
class Tile:
    """One figure of the headline."""

    label: str
    value: str
    detail: str = ""


def page_environment(*places: Path) -> jinja2.Environment:
    """Every text that the template prints is escaped, after its controls and bidi marks were made visible.

    Args:
        places: directories with templates beside the report's own.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([here, *places]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.globals["style"] = Markup((here / "page.css").read_text(encoding="utf-8"))
    environment.globals["colors"] = {role: color for color, role in ROLES.items()}
    return environment


@dataclass(frozen=True)
class Script:
    """A script of our own in a page."""

    text: Markup
    hash: str
    """By which the page's policy lets it run, and no other."""


def script(name: str) -> Script:
    """A script that lies beside this file."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return Script(Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())


def _harmless(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
