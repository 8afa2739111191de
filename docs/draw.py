"""The picture of the rooms: in the order of the contract in pyproject.toml, with what each of them imports."""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
SAYS = {
    "flows": "orchestration and the command line",
    "prepare": "init, check, doctor",
    "exchange": "imports, exports",
    "look": "audit, report, show, view, diff, upkeep, trackers",
    "compare": "trials side by side",
    "reward_models": "rewards learned from preferences",
    "evaluate": "pass@k",
    "score": "cached logprobs",
    "train": "epochs over a frozen snapshot",
    "shape": "advantages and weights",
    "regrade": "other grades",
    "revise": "corrections by an expert",
    "generate": "vLLM: tokens and logprobs",
    "environments": "what answers within an episode",
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
    """The picture as SVG: a row says what its room is and knows, a column who knows it. All marks lie above the diagonal."""
    rooms, pairs = [room for layer in layers() for room in layer], knows()
    side, left, top = 26, 330, 96
    width, height = left + side * len(rooms) + 50, top + side * len(rooms) + 10
    parts = []
    for row, room in enumerate(rooms):
        y, x = top + row * side, left + row * side
        parts.append(f'<rect class="self" x="{x}" y="{y}" width="{side}" height="{side}"/>')
        parts.append(f'<text class="room" x="10" y="{y + 18}">{escape(room)}</text>')
        parts.append(f'<text class="says" x="96" y="{y + 18}">{escape(SAYS[room])}</text>')
        parts.append(f'<text class="room" transform="translate({x + 17} {top - 8}) rotate(-60)">{escape(room)}</text>')
        parts.append(f'<path d="M10 {y}H{left + side * len(rooms)}M{x} {top}V{height - 10}"/>')
        for column, other in enumerate(rooms):
            if (room, other) in pairs:
                place = f'cx="{left + column * side + side / 2:g}" cy="{y + side / 2:g}"'
                parts.append(f'<circle {place} r="6"><title>{escape(room)} knows {escape(other)}</title></circle>')
    style = (
        ".self{fill:#d9d4c7}circle{fill:#2f6f8f}path{stroke:#d5dade;stroke-width:.7}"
        "text{font:13px sans-serif;fill:#222}.says{font-size:11px;fill:#667}"
        "@media(prefers-color-scheme:dark){.self{fill:#454c54}circle{fill:#7cc0de}path{stroke:#3d444b}"
        "text{fill:#eee}.says{fill:#aab}}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="Which room knows which">'
    )
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>", ""])
