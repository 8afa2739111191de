"""The HTML page: what is on it, and that nothing from a model acts in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.common.errors import IntegrityError
from pipeline.look.report import page as page_module
from pipeline.look.report.page import render, write_report
from pipeline.run.state import Run, Stop

SECTIONS = ("Accuracy", "Training rollouts", "Training", "Time and tokens", "Best and worst rollouts", "Settings", "Lineage")
PLOTS = (
    *(
        "Held-out accuracy",
        "pass@k",
        "Reward distribution",
        "Solved by group",
        "Response length",
        "Statuses",
        "Kept and dropped",
        "Loss",
    ),
    *("Gradient norm", "Entropy", "KL to the behavior policy", "Importance ratio", "Clip fraction", "Effective sample size"),
    *("Engine and trainer", "Time per stage"),
)
PAGE_TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "h1",
    "h2",
    "h3",
    "h4",
    "p",
    "dl",
    "div",
    "dt",
    "dd",
    "small",
    "nav",
    "a",
    "main",
    "section",
    "figure",
    "figcaption",
    "span",
    "ul",
    "li",
    "i",
    "em",
    "code",
    "bdi",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "article",
    "details",
    "summary",
    "script",
}
PICTURE_TAGS = {"svg", "g", "defs", "path", "use", "text", "tspan", "clippath", "rect"}


class Page(HTMLParser):
    """Collects tags, attributes and the text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.said = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        tag = self.open[-1] if self.open else ""
        self.texts.setdefault(tag, []).append(data)
        if tag not in ("style", "script"):
            self.said += data


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    return render(run)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_page_has_every_section_and_plot(page: Page) -> None:
    assert tuple(page.texts["h2"]) == SECTIONS
    assert set(PLOTS) <= {text.strip() for text in page.texts["h3"]}
    assert sum(tag == "svg" for tag, _ in page.tags) == len(PLOTS)
    assert page.open == []


def test_what_the_training_spared_and_took_stands_beside_its_time(page: Page) -> None:
    assert {"shared", "74.5 %", "peak memory", "4.8 GB"} <= {text.strip() for name in ("th", "td") for text in page.texts[name]}


def test_page_runs_one_script_of_ours_and_loads_nothing(page: Page, html: str) -> None:
    assert {tag for tag, _ in page.tags} <= PAGE_TAGS | PICTURE_TAGS
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "srcset", "action", "data") for name in attributes)
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html and "http:" not in html and "https:" not in html
    (script,) = page.texts["script"]
    assert script == (Path(page_module.__file__).parent / "readings.js").read_text(encoding="utf-8")
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hashed}'\"" in html


def test_ids_are_unique_and_every_reference_leads_somewhere(page: Page, html: str) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, attributes in page.tags for name, value in attributes.items() if name.endswith("href")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", html))
    assert targets <= set(ids)


def test_hostile_texts_are_shown_and_not_obeyed(page: Page, html: str) -> None:
    said = page.said
    assert "<script>alert(1)</script> 41" in said
    assert '</style></div>"><img src=x onerror=alert(2)> 41' in said
    assert "{{ 7 * 7 }} {% raw %} ${x} $\\frac{1}{0}$ ]]> <!-- 3" in said
    assert "‹U+0000›‹U+001B›[31mred" in said and "‹U+202E›txt.exe‹U+202C› zero‹U+200B›width" in said
    assert "<script>alert(3)</script> $x$" in said
    assert "models/<b>base</b>‹U+202E›" in said
    assert "</pre><script>alert(4)</script>{question}" in said
    assert "train-1-1<i>" in said
    assert {char for char in html if unicodedata.category(char) in ("Cc", "Cf", "Cs")} <= {"\n"}


def test_tokens_are_shaded_and_add_up_to_the_completion(page: Page) -> None:
    shades = [attributes["class"] for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    assert {"p0", "p1", "p2", "p3", "given"} <= set(shades)
    assert "naïve 数学 🙂🏽 مرحبا 7" in page.said
    assert "The first 600 of 1,085 tokens." in page.said


def test_the_gain_with_its_interval_is_the_first_thing_said(page: Page) -> None:
    """Of 20 prompts, 16 went from one solved sample of four to two, and 4 from one to three: (16 / 4 + 4 / 2) / 20 = 0.3."""
    verdict = page.texts["p"][0]
    assert verdict.startswith("Held-out pass@1 rose by 30.0 points (95 % interval +2")
    assert verdict.endswith(", from 25.0 % with the base model to 55.0 % after iteration 2.")


def test_page_says_when_by_what_and_where_the_run_was_made(html: str, run: Run) -> None:
    provenance = run.iterations[-1].policy.manifest.provenance
    facts = dict(re.findall(r"<div><dt>(\w+)</dt><dd>(?:<code>)?([^<]*)", html))
    assert facts["date"].startswith(provenance.created[:10]) and facts["date"].endswith(" UTC")
    assert facts["version"].startswith("rollbook ") and "torch " in facts["version"]
    assert facts["machine"] == provenance.host
    assert facts["command"] and facts["commit"]


def test_plots_without_news_and_default_settings_are_folded(make_run: Callable[..., Run], html: str) -> None:
    folded = re.findall(r"<details>\s*<summary>([^<]*)</summary>", html)
    assert folded[-1] == "All settings, defaults included"
    chosen, everything = html.split('id="settings"')[1].split("<details>")
    assert "max_tokens: 40" in chosen and "max_tokens: 40" in everything
    assert "solved_at" not in chosen and "solved_at" in everything


def test_every_plot_tells_its_values(html: str) -> None:
    told = [json.loads(unescape(text)) for text in re.findall(r'data-values="([^"]*)"', html)]
    assert len(told) == len(PLOTS)
    accuracy = told[0]
    assert (accuracy["at"], accuracy["unit"]) == ("iteration", " %")
    assert accuracy["lines"][0] == {
        "name": "pass@1, sampled",
        "role": "s0",
        "x": [0, 1, 2],
        "y": [25, 40, 55],
        "low": [19, 34, 49],
        "high": [31, 46, 61],
    }


def test_headline_states_the_change(page: Page) -> None:
    said = " ".join(page.said.split())
    assert "25.0 % → 55.0 % +30.0 points" in said
    assert "29.0 % → 59.0 %" in said
    assert "2 of 2" in said and "rec-oneside-nois" in said


def test_figures_that_are_not_finite_are_gaps_with_a_note(page: Page) -> None:
    said = page.said
    assert "loss is NaN or infinite at 1 of 36 steps (first at iteration 0, step 4)" in said
    assert "grad_norm is NaN or infinite at 1 of 36 steps (first at iteration 0, step 5)" in said


def test_lineage_names_every_artifact_once(run: Run, page: Page) -> None:
    rows = [attributes["id"] for tag, attributes in page.tags if tag == "tr" and "id" in attributes]
    artifacts = sorted(path.parent for path in Path(run.config.store_url).glob("*/*/manifest.json"))
    assert len(rows) == len(set(rows)) == len(artifacts) == 18
    assert all(str(path) in page.said for path in artifacts)
    assert "checkpoint of 0, policy of 1" in page.said


@pytest.mark.parametrize(("healthy", "looks"), [(True, "state"), (False, "state warning")])
def test_why_a_run_was_stopped_is_the_first_thing_said(run: Run, healthy: bool, looks: str) -> None:
    stop = Stop("no_signal", 2, "all rewards are 0, so there is nothing to learn from", healthy=healthy)
    said = f'<p class="{looks}">Stopped after iteration 2: all rewards are 0, so there is nothing to learn from.'
    assert said in render(replace(run, stopped=stop))


@pytest.mark.parametrize("missing", ["base", "prompts", "generate 0", "evaluate 0", "shape 0", "train 0", "generate 1"])
def test_unfinished_run_renders_with_one_line_for_what_is_not_there(make_run: Callable[..., Run], missing: str) -> None:
    page = Page(render(make_run(missing=missing)))
    said = page.said
    assert f"the next stage is {missing}" in said
    assert tuple(page.texts["h2"]) == SECTIONS
    trained = missing == "generate 1"
    assert ("No training has finished yet" in said) is not trained
    assert ("No training rollouts are there yet" in said) is (missing in ("base", "prompts", "generate 0"))
    assert ("No evaluation has finished yet" in said) is (missing in ("base", "prompts", "generate 0", "evaluate 0"))


def test_without_a_tokenizer_the_plain_completions_are_shown(make_run: Callable[..., Run]) -> None:
    page = Page(render(make_run(iterations=1, tokenizer=False)))
    assert "has no tokenizer.json" in page.said
    assert "<script>alert(1)</script> 41" in page.said
    assert not any("title" in attributes for tag, attributes in page.tags if tag == "span")


def test_a_broken_tokenizer_is_said_and_passed_over(make_run: Callable[..., Run]) -> None:
    run = make_run(iterations=1)
    (run.iterations[0].policy.path / "tokenizer.json").write_text("{")
    assert "tokenizer.json cannot be read" in Page(render(run)).said


def test_write_report_replaces_an_earlier_page(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(missing="generate 0")
    path = write_report(run, tmp_path / "deep" / "report.html")
    path.write_text("old")
    assert write_report(run, path) == path
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(path.parent.iterdir()) == [path]


def test_a_lost_shard_is_an_error_that_names_it(make_run: Callable[..., Run]) -> None:
    run = make_run(iterations=1)
    (run.iterations[0].answers.rollouts.path / "part-00001.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"part-00001\.parquet"):
        render(run)


def test_a_run_that_replays_shows_the_age_of_what_it_trained_on(make_run: Callable[..., Run], run: Run) -> None:
    page = render(make_run(replay={"iterations": 1}))
    assert "Age of the completions" in page
    assert "rollouts of 0, replay 1 rollouts of 1" in page
