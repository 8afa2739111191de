"""An audit and a lineage in the terminal. Every text of the data is made harmless before it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pipeline.common.text import count, duration, number, visible
from pipeline.look.audit.audit import Audit
from pipeline.look.audit.findings import AREAS, SEVERITIES, Count, Finding, Severity
from pipeline.look.audit.lineage import Graph, LineageNode
from pipeline.look.audit.remedies import in_order

SHOWN = 30
"""Findings that are printed; the page and --json have all of them."""
STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "unknown": "magenta", "note": "dim"}
SIGNS: dict[Severity, str] = {"error": "✗", "warning": "!", "unknown": "?", "note": "·"}


def summary(audit: Audit) -> Iterator[RenderableType]:
    """What was looked at, every finding that there is room for, and the verdict."""
    speed = audit.bytes / max(audit.seconds, 1e-9) / 1e6
    read = f"{audit.bytes / 1e6:,.1f} MB in {duration(audit.seconds)} ({speed:,.0f} MB/s)"
    yield plain(f"audit of {audit.kind} {audit.path}: {read}{', figures recomputed' if audit.deep else ''}")
    yield _looked(audit)
    for finding in audit.findings[:SHOWN]:
        yield _finding(finding)
        yield from (plain(f"  {'run':9}{command}", "cyan") for command in finding.commands)
    if len(audit.findings) > SHOWN:
        yield plain(f"and {len(audit.findings) - SHOWN} more: see the page, or --json", "dim")
    if commands := in_order(audit.findings):
        yield plain("to mend all of it, in this order:")
        yield from (plain(f"  {command}", "cyan") for command in commands)
    yield plain(verdict(audit), "bold green" if audit.status == 0 else "bold red" if audit.status == 1 else "bold magenta")


def verdict(audit: Audit) -> str:
    """The result in a sentence.

    A sound artifact is what its manifest says. That everything was made anew with other content shows only in a signature.
    """
    found = [f"{audit.count(severity)} {_plural(severity, audit.count(severity))}" for severity in SEVERITIES]
    listed = ", ".join(text for text, severity in zip(found, SEVERITIES, strict=True) if audit.count(severity))
    if audit.status == 0:
        return f"sound{f' ({listed})' if listed else ''}"
    return f"findings: {listed}" if audit.status == 1 else f"cannot tell: {listed}"


def _plural(severity: Severity, number: int) -> str:
    if severity == "unknown":
        return "not checked"
    return severity if number == 1 else f"{severity}s"


def _looked(audit: Audit) -> Table:
    table = Table.grid(padding=(0, 2))
    for area in AREAS:
        counts = [entry for entry in audit.counts if entry.area == area]
        texts = [looked(entry) for entry in counts]
        if area == "hygiene" and audit.figures:
            texts = [f"figures: {len(audit.figures)}"]
        if texts:
            table.add_row(Text(area, "cyan"), Text("\n".join(texts)))
    return table


def looked(entry: Count) -> str:
    """`files: 14`, or `files: 12 of 14` if not all were looked at."""
    some = "" if entry.done == entry.total else f"{count(entry.done)} of "
    return f"{entry.what}: {some}{count(entry.total)}"


def _finding(finding: Finding) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    style = STYLES[finding.severity]
    more = f" ({count(finding.count)} like this)" if finding.count > 1 else ""
    head = Text.assemble((finding.severity, style), f"  {finding.area}: {finding.check}{more}")
    table.add_row(Text(SIGNS[finding.severity], style), Text("where", "dim"), plain(_where(finding)))
    table.add_row("", Text("what", "dim"), head)
    for name in ("expected", "found", "remedy"):
        table.add_row("", Text(name, "dim"), plain(str(getattr(finding, name))))
    return table


def _where(finding: Finding) -> str:
    """The place as a shell takes it, then row and column."""
    place = "/".join(part for part in (finding.artifact, finding.file) if part) or "."
    return (finding.path or place) + finding.where.removeprefix(place)


def tree(graph: Graph, roots: Iterable[LineageNode]) -> Iterator[RenderableType]:
    """Artifacts with what they were made from below them; one that is there already is not unfolded again."""
    numbers = {command: place for place, command in enumerate(graph.commands, start=1)}
    unfolded: set[str] = set()
    for root in roots:
        top: Tree | None = None
        waiting: list[tuple[LineageNode, str | None, Tree | None]] = [(root, None, None)]
        while waiting:
            node, role, above = waiting.pop()
            known = node.id in unfolded
            text = _node(node, role, numbers, known=known)
            branch = above.add(text) if above else Tree(text, guide_style="dim")
            top = top or branch
            if not known:
                unfolded.add(node.id)
                waiting += [(graph.nodes[parent.id], parent.role, branch) for parent in reversed(node.parents)]
        if top:
            yield top
    for command, place in numbers.items():
        yield plain(f"[{place}] {command}")


def _node(node: LineageNode, role: str | None, numbers: dict[str, int], *, known: bool) -> Text:
    text = Text()
    if role:
        text.append(f"{visible(role)}: ", "cyan")
    text.append(f"{visible(node.kind)} {visible(node.short)}", "bold" if not known else "dim")
    if node.held is None:
        return text.append("  missing", "red")
    if known:
        return text.append("  (above)", "dim")
    made = f"  {node.held.folder.kind}/{node.held.folder.name}  {node.stage} [{numbers[node.command]}]"
    figures = ", ".join(f"{name} {value}" for name, value in _figures(node))
    return text.append(visible(made)).append(visible(f"  {figures}") if figures else "", "dim")


def _figures(node: LineageNode) -> Iterator[tuple[str, str]]:
    """A few figures that tell artifacts of one kind apart."""
    assert node.held is not None
    summary = node.held.summary
    for name in ("iteration", "prompts", "completions", "kept", "steps", "trials"):
        if isinstance(summary.get(name), int):
            yield name, count(summary[name])
    purpose = node.held.recipe.get("purpose")
    if isinstance(purpose, str):
        yield "for", purpose
    first = summary.get("pass_at")
    for name in ("1", "value"):
        first = first.get(name) if isinstance(first, dict) else None
    if isinstance(first, float):
        yield "pass@1", number(first)


def plain(text: str, style: str = "") -> Text:
    """Text on one line whose controls, bidi marks and invisible characters are shown by their numbers."""
    return Text(visible(text).replace("\n", " ⏎ "), style, overflow="fold")
