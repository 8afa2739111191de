"""What an audit prints and writes: nothing of the data acts, in the terminal or on the page, and machines get all of it."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from markupsafe import escape
from rich.console import Console

from pipeline.look.audit.audit import Audit, audit
from pipeline.look.audit.page import render, write_page
from pipeline.look.audit.results import as_json
from pipeline.look.audit.terminal import SHOWN, summary
from pipeline.store import Request, Store, Work
from schemas import Rollouts
from schemas.manifest import Parent

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "\u202eevil\u202c zero\u200bwidth",
    "&lt;b&gt; {{ 7 * 7 }} {% raw %} ${x} ]]> <!--",
    "[bold red]markup[/bold red] \x00 \r\n",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit of a store in which every text attacks whoever shows it, and in which much is wrong."""
    root = tmp_path_factory.mktemp("hostile")
    parents = (Parent(role=HOSTILE[0] + HOSTILE[2], kind="checkpoint", id=HOSTILE[1]),)
    recipe = {"purpose": HOSTILE[0], "samples": 2, "sampling": {"temperature": 1.0}, "reward": [{"grader": "exact_match"}]}
    with Store(root).work(Request("rollouts", "generate/1", recipe, parents)) as work:
        assert isinstance(work, Work)
        same: dict[str, Any] = {
            **dict.fromkeys(Rollouts.columns()),
            **{"sample_index": 0, "prompt_token_ids": [1], "completion_token_ids": [1], "behavior_logprobs": [-1.0]},
            **{"reward": 2.0, "reward_exact_match": 3.0, "policy_version": 0, "source": "self", "seed": 1, "temperature": 0.5},
            **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "logprobs_mode": "unknown", "status": "truncated"},
        }
        texts = ("group_id", "prompt_id", "prompt_text", "completion_text", "answer", "finish_reason", "policy_id", "engine")
        types = {name: column.dtype for name, column in Rollouts.columns().items()} | {"reward_exact_match": pl.Float64}
        rows = [{**same, **dict.fromkeys(texts, text)} for text in HOSTILE]
        work.write_table("part-00000.parquet", pl.DataFrame(rows, schema=types), Rollouts)
        work.finish({"policy_version": 0, "groups": 1})
    (root / "<b>stray\x1b[31m").mkdir()
    return audit(root)


def printed(found: Audit, width: int = 100) -> str:
    out = StringIO()
    console = Console(file=out, width=width)
    for part in summary(found):
        console.print(part, highlight=False)
    return out.getvalue()


def test_the_terminal_shows_controls_by_their_numbers(hostile: Audit) -> None:
    text = printed(hostile)
    assert hostile.status == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e]", text)
    assert "‹U+001B›[31m" in text and "<script>alert(1)</script>" in text


def test_the_page_has_no_script_and_no_tag_of_the_data(hostile: Audit, tmp_path: Path) -> None:
    html = write_page(hostile, tmp_path / "audit.html").read_text(encoding="utf-8")
    assert html == render(hostile)
    assert "default-src 'none'" in html
    tags = {tag.lower() for tag in re.findall(r"<\s*([a-zA-Z!]+)", html)}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "b>stray"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e]", html)
    assert not re.search(r"(src|href)=\"(?!#)", html)


def test_the_page_of_a_deep_audit_shows_how_logprobs_differ(made: Path) -> None:
    found = audit(made, deep=True, samples=4, steps=0)
    html = render(found)
    assert html.count("behavior_logprobs") == 5
    assert "Personal data are out of scope" in html
    assert "rollbook sign" in html
    for node in found.graph.nodes.values():
        assert html.count(f'id="a-{node.short}"') == 1


def test_every_finding_is_a_card_with_its_remedy_and_the_commands_that_do_it(copied) -> None:
    target = copied.artifact("rollouts", purpose="train")
    file = target / "part-00000.parquet"
    file.write_bytes(file.read_bytes()[:-9] + b"somewhere")
    found = audit(copied.store)
    html = render(found)
    cards = re.findall(r'<article class="finding (\w+)">(.*?)</article>', html, re.DOTALL)
    assert [severity for severity, _ in cards] == [finding.severity for finding in found.findings]
    for finding, (_, card) in zip(found.findings, cards, strict=True):
        assert f"<dt>remedy</dt><dd>{escape(finding.remedy)}</dd>" in card
        assert all(str(escape(command)) in card for command in finding.commands)


def test_what_is_damaged_is_marked_in_both_pictures_and_in_the_list(copied) -> None:
    target = copied.artifact("rollouts", purpose="train")
    file = target / "part-00000.parquet"
    file.write_bytes(file.read_bytes()[:-9] + b"somewhere")
    found = audit(copied.store)
    html, wrong = render(found), {finding.id for finding in found.findings if finding.severity == "error"}
    assert wrong
    for id in wrong:
        assert html.count(f'<a href="#a-{id[:12]}" class="damaged">') == 2
        assert html.count(f'<tr id="a-{id[:12]}" class="damaged">') == 1
    assert html.count('class="damaged"') == 3 * len(wrong)


def test_figures_within_their_limits_are_folded(made: Path) -> None:
    found = audit(made)
    fine = [figure for figure in found.figures if not figure.beyond]
    section = render(found).split('<section id="hygiene">')[1].split("</section>")[0]
    beyond, folded = section.split("<details>")
    assert f"{len(fine)} figures within their limits, or without one" in folded
    assert folded.count("<tr>") == 1 + len(fine)
    assert beyond.count("<tr>") == (1 + len(found.figures) - len(fine) if len(fine) < len(found.figures) else 0)


def test_machines_get_every_finding_with_all_its_fields(hostile: Audit) -> None:
    value = json.loads(json.dumps(as_json(hostile), allow_nan=False))
    assert (value["status"], value["kind"], len(value["findings"])) == (1, "store", len(hostile.findings))
    fields = {"area", "check", "severity", "artifact", "id", "file", "row", "column", "expected", "found", "remedy"}
    fields |= {"count", "path", "commands"}
    assert all(finding.keys() == fields for finding in value["findings"])
    assert all(finding["expected"] and finding["remedy"] for finding in value["findings"])


def test_many_findings_are_cut_in_the_terminal_and_named_as_such(copied) -> None:
    notes = len(audit(copied.store).findings)
    assert notes
    for number in range(SHOWN + 3):
        (copied.store / f"stray-{number:02d}").write_text("x", encoding="utf-8")
    text = printed(audit(copied.store))
    assert f"and {3 + notes} more: see the page, or --json" in text
    assert f"findings: {SHOWN + 3} errors, {notes} note" in text
