"""The colors that are drawn with, and the CSS variables that replace them in a page."""

from __future__ import annotations

INK, MUTED, RULE, BAD = "#20262d", "#5f6b77", "#d4dae1", "#b3261e"
SERIES = ("#2166ac", "#c4560a", "#1b7f5c", "#7b4ab0", "#a3386c", "#6b6f10")
RAMP = ("#b8442f", "#dd8a55", "#edc79b", "#a9c8dc", "#5f9bc4", "#2a66a2")
ROLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    BAD: "bad",
    **{color: f"s{number}" for number, color in enumerate(SERIES)},
    **{color: f"q{number}" for number, color in enumerate(RAMP)},
}
"""What a drawn color stands for: the CSS variable that replaces it."""


def role_of(color: str) -> str:
    """The CSS variable of a color, for a legend beside the plot."""
    return ROLES[color]
