"""The picture of the rooms: layers as the contract in pyproject.toml has them, arrows as the code's imports are.

An arrow to the room right below is left out: every room knows the next ones down in some way, and the picture is to be read.
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, GAP, BOX = 760, 30, 14, 150
SAYS = {
    "flows": "orchestration and the command line",
    "prepare": "init, check, doctor",
    "exchange": "imports, exports",
    "look": "audit, report, show, diff, upkeep, trackers",
    "compare": "trials side by side",
    "evaluate": "pass@k",
    "score": "cached logprobs",
    "train": "epochs over a frozen snapshot",
    "shape": "advantages and weights",
    "regrade": "other grades",
    "generate": "vLLM: tokens and logprobs",
    "rewards": "graders",
    "sources": "models and prompts",
    "run": "orders, answers, processes",
    "store": "artifacts by key and id",
    "algorithms": "declarations of cells",
    "config": "settings",
    "common": "errors, the machine, text",
    "schemas": "tables and the manifest",
}


def layers() -> list[list[str]]:
    """Rooms from the top down, those that do not know each other in one layer."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (rooms,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["pipeline"])
    return [["flows"], *([room.strip() for room in layer.split("|")] for layer in rooms), ["schemas"]]


def knows() -> set[tuple[str, str]]:
    """Pairs of rooms, of which the first imports the second."""
    graph = grimp.build_graph("flows", "pipeline", "schemas", include_external_packages=False, cache_dir=None)
    found = set()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            found.add((_room(module), _room(other)))
    return {(one, other) for one, other in found if one != other}


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else parts[0]


def architecture() -> str:
    """The picture as SVG."""
    places: dict[str, tuple[float, float]] = {}
    boxes = []
    for number, layer in enumerate(layers()):
        y = GAP + number * (HEIGHT + GAP)
        for place, room in enumerate(layer):
            x = 220.0 + place * (BOX + 150)
            places[room] = (x, y)
            boxes.append(
                f'<rect x="{x:g}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="5"/>'
                f'<text class="room" x="{x + 10:g}" y="{y + 19}">{escape(room)}</text>'
                f'<text class="says" x="{x + BOX + 8:g}" y="{y + 19}">{escape(SAYS[room]) if len(layer) == 1 else ""}</text>'
                f"<title>{escape(room)}: {escape(SAYS[room])}</title>"
            )
    arrows = [_arrow(places[one], places[other]) for one, other in sorted(knows()) if one in places and other in places]
    height = 2 * GAP + len(layers()) * (HEIGHT + GAP)
    style = (
        "rect{fill:#f4f1ea;stroke:#5b6770}path{fill:none;stroke:#8a97a3;stroke-width:.8;opacity:.55}"
        "text{font:13px sans-serif;fill:#222}.says{font-size:11px;fill:#667}"
        "@media(prefers-color-scheme:dark){rect{fill:#2b3036;stroke:#9aa7b2}text{fill:#eee}.says{fill:#aab}}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Rooms in layers">'
    return "\n".join([head, f"<style>{style}</style>", *arrows, *boxes, "</svg>", ""])


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From the left edge of one box to that of another below it, bent the more the farther they lie apart."""
    (x1, y1), (x2, y2) = (start[0], start[1] + HEIGHT / 2), (end[0], end[1] + HEIGHT / 2)
    out = min(x1, x2) - 20 - 0.28 * abs(y2 - y1)
    return f'<path d="M{x1:g} {y1:g}C{out:g} {y1:g} {out:g} {y2:g} {x2:g} {y2:g}"/>'
