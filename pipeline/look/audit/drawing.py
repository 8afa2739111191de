"""The lineage as a picture: artifacts from the top down, each below everything it was made from, in rows that fit a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.look.audit.lineage import Graph, LineageNode

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 148, 44, 16, 34, 4
WIDE, NARROW = 8, 2
"""Artifacts of one row, on a page of 1,400 pixels and of 400."""
ROLES: Mapping[str, str] = {
    "prompts": "s5",
    "rollouts": "s0",
    "scores": "s4",
    "shaped": "s3",
    "checkpoint": "s1",
    "evaluation": "s2",
    "optimizer": "muted",
    "comparison": "muted",
    "reward_model": "s1",
    "revisions": "s0",
}
"""The CSS variable of each kind's color."""


@dataclass(frozen=True)
class Box:
    """A node on the picture."""

    node: LineageNode
    x: int
    y: int
    role: str
    label: str


@dataclass(frozen=True)
class Curve:
    """From a parent to what was made from it."""

    path: str
    """As SVG path data."""
    far: bool
    """Whether it passes over other rows."""


@dataclass(frozen=True)
class Picture:
    """Boxes, and the curves between them."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]


def draw(graph: Graph, across: int = WIDE) -> Picture:
    """Lay the graph out.

    Args:
        across: most artifacts of one row; a layer of more takes several rows.
    """
    rows = [layer[start : start + across] for layer in graph.layers() for start in range(0, len(layer), across)]
    longest = max((len(row) for row in rows), default=0)
    boxes: dict[str, Box] = {}
    for number, row in enumerate(rows):
        left = MARGIN + (longest - len(row)) * (WIDTH + ACROSS) // 2
        for place, node in enumerate(row):
            x, y = left + place * (WIDTH + ACROSS), MARGIN + number * (HEIGHT + DOWN)
            boxes[node.id] = Box(node, x, y, ROLES.get(node.kind, "muted"), _label(node))
    curves = tuple(
        _curve(boxes[parent.id], boxes[node.id])
        for node in graph.nodes.values()
        for parent in {parent.id: parent for parent in node.parents}.values()
    )
    width = 2 * MARGIN + longest * WIDTH + max(longest - 1, 0) * ACROSS
    height = 2 * MARGIN + len(rows) * HEIGHT + max(len(rows) - 1, 0) * DOWN
    return Picture(width, height, tuple(boxes.values()), curves)


def _curve(start: Box, end: Box) -> Curve:
    x1, y1, x2, y2 = start.x + WIDTH // 2, start.y + HEIGHT, end.x + WIDTH // 2, end.y
    bend = DOWN // 2
    return Curve(f"M{x1} {y1} C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2}", far=y2 - y1 > DOWN)


def _label(node: LineageNode) -> str:
    """Kind and what tells it apart from others of its kind."""
    if node.held is None:
        return f"{node.kind}, missing"
    iteration, purpose = node.held.summary.get("iteration"), node.held.recipe.get("purpose")
    if node.kind == "checkpoint" and isinstance(iteration, int):
        return f"checkpoint {iteration}"
    if node.kind == "rollouts" and isinstance(purpose, str):
        return f"rollouts, {purpose[:8]}"
    return node.kind
