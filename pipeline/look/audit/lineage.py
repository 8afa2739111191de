"""Lineage: which artifact was made from which, by which stage and command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.common.errors import UserError
from pipeline.look.audit.holdings import Held, Shelf
from schemas.manifest import Parent

SHORT = 12
"""Digits of an id that are shown."""


@dataclass(frozen=True)
class LineageNode:
    """One artifact, or a parent that is not here."""

    id: str
    kind: str
    held: Held | None
    parents: tuple[Parent, ...] = ()

    @property
    def short(self) -> str:
        return self.id[:SHORT]

    @property
    def stage(self) -> str:
        return self.held.manifest.content.stage if self.held else "missing"

    @property
    def command(self) -> str:
        """The command line that made it."""
        return command_of(self.held) if self.held else ""


@dataclass(frozen=True)
class Graph:
    """Artifacts by id, parents before children."""

    nodes: Mapping[str, LineageNode] = field(default_factory=dict)

    @property
    def leaves(self) -> list[LineageNode]:
        """Artifacts that nothing here was made from, the newest first."""
        used = {parent.id for node in self.nodes.values() for parent in node.parents}
        return [node for node in reversed(list(self.nodes.values())) if node.id not in used]

    @property
    def commands(self) -> list[str]:
        """Distinct commands, in order of their first artifact."""
        return list(dict.fromkeys(node.command for node in self.nodes.values() if node.command))

    def layers(self) -> list[list[LineageNode]]:
        """Nodes by the length of the longest way from an artifact without parents; neighbors near their parents."""
        depth: dict[str, int] = {}
        for id, node in self.nodes.items():
            depth[id] = 1 + max((depth[parent.id] for parent in node.parents), default=-1)
        layers: list[list[LineageNode]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
        for id, node in self.nodes.items():
            layers[depth[id]].append(node)
        place: dict[str, float] = {}
        for layer in layers:
            middle = {node.id: _mean(place[parent.id] for parent in node.parents) for node in layer}
            layer.sort(key=lambda node: middle[node.id])
            place |= {node.id: float(number) for number, node in enumerate(layer)}
        return layers


def graph_of(artifacts: Iterable[Held], shelf: Shelf) -> Graph:
    """The graph of some artifacts and of everything they were made from."""
    nodes: dict[str, LineageNode] = {}
    waiting: list[tuple[str, str, bool]] = [(held.id, held.kind, False) for held in reversed(list(artifacts))]
    begun: set[str] = set()
    while waiting:
        id, kind, parents_done = waiting.pop()
        held = shelf.get(id)
        if id in nodes:
            continue
        if parents_done or held is None:
            parents = held.manifest.content.parents if held else ()
            nodes[id] = LineageNode(id, kind, held, tuple(parent for parent in parents if parent.id in nodes))
        elif id not in begun:
            begun.add(id)  # a manifest can name itself among its parents; then it is not asked twice
            waiting.append((id, kind, True))
            waiting += [(parent.id, parent.kind, False) for parent in reversed(held.manifest.content.parents)]
    return Graph(nodes)


def command_of(held: Held) -> str:
    """The rollbook command that an artifact was made for; of older ones, the process that made it."""
    provenance = held.manifest.provenance
    return shlex.join(provenance.started_by or provenance.command)


def find(shelf: Shelf, id: str) -> Held:
    """The artifact whose id or key begins with some digits.

    Raises:
        UserError: none or several do.
    """
    found = [held for held in shelf.all if held.id.startswith(id) or held.manifest.content.key.startswith(id)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{id}: no artifact whose id or directory begins like that")
    names = ", ".join(f"{held.name} ({held.id[:SHORT]})" for held in found[:5])
    raise UserError(f"{id}: {len(found)} artifacts begin like that: {names}. Give more digits")


def as_json(graph: Graph) -> dict[str, Any]:
    """The graph as plain JSON: nodes with everything that is known of how they were made, and edges."""
    return {
        "nodes": [_node(node) for node in graph.nodes.values()],
        "edges": [
            {"from": parent.id, "to": node.id, "role": parent.role} for node in graph.nodes.values() for parent in node.parents
        ],
    }


def _node(node: LineageNode) -> dict[str, Any]:
    if node.held is None:
        return {"id": node.id, "kind": node.kind, "missing": True}
    manifest = node.held.manifest
    return {
        "id": node.id,
        "kind": node.kind,
        "missing": False,
        "place": manifest.content.kind + "/" + node.held.folder.name,
        "url": node.held.folder.place.url,
        "key": manifest.content.key,
        "stage": manifest.content.stage,
        "command": node.command,
        "recipe": manifest.content.recipe,
        "summary": manifest.content.summary,
        "provenance": manifest.provenance.model_dump(mode="json", exclude={"files"}),
    }


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
