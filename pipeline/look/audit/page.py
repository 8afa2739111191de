"""The audit as one HTML page that holds everything it shows. It has no scripts and asks nothing of the network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.text import count, duration, number
from pipeline.look.audit.audit import Audit
from pipeline.look.audit.drawing import HEIGHT, NARROW, WIDE, WIDTH, draw
from pipeline.look.audit.findings import AREAS, SEVERITIES, Severity
from pipeline.look.audit.lineage import Graph
from pipeline.look.audit.remedies import in_order
from pipeline.look.audit.terminal import looked, verdict
from pipeline.look.report.frame import Tile, page_environment
from pipeline.look.report.made import made
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
    command: int | None
    """Its place in the list of commands, from 1."""
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
        made=made(node.held.manifest.provenance for node in audit.graph.nodes.values() if node.held),
        mending=in_order(audit.findings),
        tiles=list(_tiles(audit)),
        severities=SEVERITIES,
        findings=audit.findings[:MOST_FINDINGS],
        left_out=max(len(audit.findings) - MOST_FINDINGS, 0),
        areas=[(area, about, [looked(c) for c in audit.counts if c.area == area]) for area, about in AREAS.items()],
        figures=[(beyond, [(f, number(f.value, 4)) for f in audit.figures if f.beyond == beyond]) for beyond in (True, False)],
        decades=DECADES,
        distributions=[(one, _shares(one.counts), _quantiles(one)) for one in audit.distributions],
        pictures={"wide": draw(audit.graph, WIDE), "narrow": draw(audit.graph, NARROW)} if drawn else {},
        box=(WIDTH, HEIGHT),
        damaged=_damaged(audit),
        rows=list(_rows(audit.graph, audit)),
        commands=audit.graph.commands,
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


def _damaged(audit: Audit) -> dict[str, tuple[Severity, int]]:
    """The worst severity of what was found of an artifact, and how much was; notes count for nothing."""
    found: dict[str, tuple[Severity, int]] = {}
    for finding in audit.findings:  # the worst come first
        if finding.id is not None and finding.severity != "note":
            worst, number = found.get(finding.id, (finding.severity, 0))
            found[finding.id] = (worst, number + 1)
    return found


def _rows(graph: Graph, audit: Audit) -> Iterator[LineageRow]:
    found = _damaged(audit)
    numbers = {command: place for place, command in enumerate(graph.commands, start=1)}
    for node in graph.nodes.values():
        provenance = node.held.manifest.provenance if node.held else None
        made = f"{provenance.created}, {duration(provenance.seconds)}, on {provenance.host}" if provenance else ""
        yield LineageRow(
            id=node.id,
            short=node.short,
            kind=node.kind,
            stage=node.stage,
            parents=tuple((parent.role, parent.id, graph.nodes[parent.id].short) for parent in node.parents),
            command=numbers.get(node.command),
            made=made,
            place=node.held.folder.place.url if node.held else "not here",
            findings=found[node.id][1] if node.id in found else 0,
        )
