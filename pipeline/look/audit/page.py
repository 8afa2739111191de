"""The audit as one HTML page that holds everything it shows. It has no scripts and asks nothing of the network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.text import count, duration, number
from pipeline.look.audit.audit import Audit
from pipeline.look.audit.drawing import HEIGHT, WIDTH, draw
from pipeline.look.audit.findings import AREAS, SEVERITIES
from pipeline.look.audit.lineage import Graph
from pipeline.look.audit.terminal import looked, verdict
from pipeline.look.report.page import Tile, page_environment
from pipeline.store.files import write_text

MOST_FINDINGS = 500
"""Findings that the page lists; --json has all of them."""
MOST_NODES = 400
"""Artifacts that are drawn; beyond that the picture says nothing."""
DECADES = ("0", "≤ 1e-9", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1", "1", "10", "more")
"""Heads of the columns that differences are counted in."""


@dataclass(frozen=True)
class LineageRow:
    """One artifact in the list of lineage."""

    id: str
    short: str
    kind: str
    stage: str
    parents: tuple[tuple[str, str, str], ...]
    """Role, id and its first digits."""
    command: str
    made: str
    place: str
    findings: int


def write_page(audit: Audit, path: Path) -> Path:
    """Write the page; an earlier one at that place is replaced whole.

    Raises:
        StageFailed: the place cannot be written to.
    """
    write_text(path, render(audit))
    return path


def render(audit: Audit) -> str:
    """The page's HTML."""
    template = page_environment(Path(__file__).parent).get_template("audit.html.j2")
    drawn = len(audit.graph.nodes) <= MOST_NODES
    return template.render(
        audit=audit,
        verdict=verdict(audit),
        tiles=list(_tiles(audit)),
        severities=SEVERITIES,
        findings=audit.findings[:MOST_FINDINGS],
        left_out=max(len(audit.findings) - MOST_FINDINGS, 0),
        areas=[(area, about, [looked(c) for c in audit.counts if c.area == area]) for area, about in AREAS.items()],
        figures=[(figure, number(figure.value, 4)) for figure in audit.figures],
        decades=DECADES,
        distributions=[(one, _shares(one.counts), _quantiles(one)) for one in audit.distributions],
        picture=draw(audit.graph) if drawn else None,
        box=(WIDTH, HEIGHT),
        rows=list(_rows(audit.graph, audit)),
    )


def _tiles(audit: Audit) -> Iterator[Tile]:
    yield Tile("audited", audit.kind, "figures recomputed" if audit.deep else "files, rows and lineage; not recomputed")
    yield Tile("artifacts", count(len(audit.held)))
    speed = audit.bytes / max(audit.seconds, 1e-9) / 1e6
    yield Tile("read", f"{audit.bytes / 1e6:,.1f} MB", f"in {duration(audit.seconds)}, {speed:,.0f} MB/s")
    for severity, about in SEVERITIES.items():
        name = "not checked" if severity == "unknown" else f"{severity}s"
        yield Tile(name, count(audit.count(severity)), about)


def _shares(counts: tuple[int, ...]) -> list[tuple[str, float]]:
    """Each count as text and as a share between 0 and 1."""
    total = sum(counts)
    shares = [value / total if total else 0.0 for value in counts]
    return [(f"{100 * share:.1f} %" if share else "", round(math.sqrt(share), 3)) for share in shares]


def _quantiles(distribution: Any) -> str:
    return ", ".join(f"{name} {value:.2g}" for name, value in distribution.quantiles.items())


def _rows(graph: Graph, audit: Audit) -> Iterator[LineageRow]:
    found: dict[str | None, int] = {}
    for finding in audit.findings:
        if finding.severity != "note":
            found[finding.id] = found.get(finding.id, 0) + 1
    for node in graph.nodes.values():
        provenance = node.held.manifest.provenance if node.held else None
        made = f"{provenance.created}, {duration(provenance.seconds)}, on {provenance.host}" if provenance else ""
        yield LineageRow(
            id=node.id,
            short=node.short,
            kind=node.kind,
            stage=node.stage,
            parents=tuple((parent.role, parent.id, graph.nodes[parent.id].short) for parent in node.parents),
            command=node.command,
            made=made,
            place=node.held.folder.place.url if node.held else "not here",
            findings=found.get(node.id, 0),
        )
