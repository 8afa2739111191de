"""The lineage as a picture: artifacts from left to right, each right of everything it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.look.audit.lineage import Graph, LineageNode

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 168, 44, 64, 14, 8
ROLES: Mapping[str, str] = {
    "prompts": "s5",
    "rollouts": "s0",
    "scores": "s4",
    "shaped": "s3",
    "checkpoint": "s1",
    "evaluation": "s2",
    "optimizer": "muted",
    "comparison": "muted",
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
    """Whether it passes over other columns."""


@dataclass(frozen=True)
class Picture:
    """Boxes, and the curves between them."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]


def draw(graph: Graph) -> Picture:
    """Lay the graph out."""
    layers = graph.layers()
    tallest = max((len(layer) for layer in layers), default=0)
    boxes: dict[str, Box] = {}
    for column, layer in enumerate(layers):
        top = MARGIN + (tallest - len(layer)) * (HEIGHT + DOWN) // 2
        for row, node in enumerate(layer):
            x, y = MARGIN + column * (WIDTH + ACROSS), top + row * (HEIGHT + DOWN)
            boxes[node.id] = Box(node, x, y, ROLES.get(node.kind, "muted"), _label(node))
    curves = tuple(
        _curve(boxes[parent.id], boxes[node.id])
        for node in graph.nodes.values()
        for parent in {parent.id: parent for parent in node.parents}.values()
    )
    width = 2 * MARGIN + len(layers) * WIDTH + max(len(layers) - 1, 0) * ACROSS
    height = 2 * MARGIN + tallest * HEIGHT + max(tallest - 1, 0) * DOWN
    return Picture(width, height, tuple(boxes.values()), curves)


def _curve(start: Box, end: Box) -> Curve:
    x1, y1, x2, y2 = start.x + WIDTH, start.y + HEIGHT // 2, end.x, end.y + HEIGHT // 2
    bend = ACROSS // 2
    return Curve(f"M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}", far=x2 - x1 > ACROSS)


def _label(node: LineageNode) -> str:
    """Kind and what tells it apart from others of its kind."""
    if node.held is None:
        return f"{node.kind}, missing"
    iteration, purpose = node.held.summary.get("iteration"), node.held.recipe.get("purpose")
    if node.kind == "checkpoint" and isinstance(iteration, int):
        return f"checkpoint {iteration}"
    if node.kind == "rollouts" and isinstance(purpose, str):
        return f"rollouts, {purpose[:12]}"
    return node.kind
