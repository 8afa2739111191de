"""The comparison's page: what is on it, that only its own script runs, and that it holds whatever happened."""

from __future__ import annotations

import base64
import doctest
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.compare.table import record
from pipeline.compare.trials import Trials
from pipeline.look.report import comparison, comparison_table
from pipeline.look.report.comparison import render
from pipeline.look.report.comparison_curves import look_of
from pipeline.look.report.comparison_data import Compared, by_epoch, over_seeds, read_compared
from pipeline.look.report.comparison_table import comparison_table as table_of
from pipeline.look.report.comparison_verdict import ranking_verdict
from pipeline.store import Artifact

Make = Callable[..., Trials]
ALGORITHMS = "reinforce,grpo,rec-oneside-nois:low=0.6,high=2.0,gspo,opmd,dpo"
HOSTILE = "/rollouts/1: </div><script>alert(1)</script> \x1b[31mred\u202e"
PLOTS = (
    *("pass@1 after each epoch", "Greedy accuracy after each epoch", "Response length after each epoch"),
    *("Entropy", "KL to the behavior policy", "Effective sample size", "Clip fraction, A > 0", "Clip fraction, A < 0"),
    "Gradient norm",
)


ALIKE = {
    **dict.fromkeys(("ratio_q01", "ratio_q10", "ratio_q50", "ratio_q90", "ratio_q99", "ratio_max", "ess"), 1.0),
    **dict.fromkeys(("loss", "grad_norm", "kl_behavior", "entropy", "clip_fraction_positive", "clip_fraction_negative"), 0.0),
}
"""Figures of a training that moved nothing."""


class Page(HTMLParser):
    """Tags with their attributes, the text outside of style and script, and what is inside a script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.said = ""
        self.scripts: list[str] = []
        self.heads: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "input", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        if tag == "script":
            self.scripts.append(data)
        elif tag != "style":
            self.said += data
        if tag in ("h2", "h3"):
            self.heads.append(data.strip())

    def find(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [a for name, a in self.tags if name == tag and all(a.get(key) == value for key, value in wanted.items())]


@pytest.mark.filterwarnings("error")
def test_a_comparison_in_which_all_values_are_equal_is_drawn_without_a_warning(make_trials: Make) -> None:
    names = "reinforce,grpo"
    alike = make_trials(
        names, seeds=2, curve=True, columns=dict.fromkeys(names.split(","), ALIKE), strengths=dict.fromkeys(names.split(","), 0.0)
    )
    page = Page(render(compared_of(alike)))
    assert [head for head in page.heads if head in names.split(",")] == names.split(",")


def test_the_verdict_says_whether_the_lead_may_be_chance(make_trials: Make) -> None:
    clear = ranking_verdict(compared_of(make_trials("reinforce,grpo", strengths={"reinforce": 0.0, "grpo": 0.5})))
    assert clear.says.startswith("grpo has a held-out pass@1 of ")
    assert re.search(r"\. It leads: the next, reinforce, is [\d.]+ points \[[\d.]+, [\d.]+\] behind\.$", clear.says)
    alike = ranking_verdict(compared_of(make_trials("reinforce,grpo", strengths=dict.fromkeys(("reinforce", "grpo"), 0.1))))
    assert alike.says.endswith("It comes first, but that may be chance: grpo may be as good.")
    assert alike.way == "even"


def test_the_verdict_says_what_beats_imitation(make_trials: Make) -> None:
    def says(**strengths: float) -> str:
        trials = make_trials(",".join(strengths).replace("best_of_n", "best-of-n"), strengths={
            name.replace("_", "-"): strength for name, strength in strengths.items()
        })  # fmt: skip
        trials.plan = replace(trials.plan, baseline="best-of-n")
        return ranking_verdict(compared_of(trials)).says

    assert says(grpo=0.5, reinforce=0.0, best_of_n=0.1).endswith("Better than best-of-n, SFT on each group's best: grpo.")
    assert says(grpo=0.5, reinforce=0.4, best_of_n=0.0).endswith("Better than best-of-n, SFT on each group's best: all others.")
    assert says(grpo=0.1, best_of_n=0.3).endswith("Nothing is known to be better than best-of-n, SFT on each group's best.")


def compared_of(trials: Trials) -> Compared:
    return read_compared(record(trials), trials.plan.snapshot.store)


@pytest.fixture(scope="module")
def trials(make_trials: Make) -> Trials:
    """Six algorithms with two seeds, judged after every epoch; one failed, one has no ratio."""
    no_ratio = dict.fromkeys(("kl_behavior", "ess", *(f"ratio_q{q}" for q in ("01", "10", "50", "90", "99"))))
    return make_trials(ALGORITHMS, seeds=2, curve=True, failing={"dpo": HOSTILE}, columns={"gspo": no_ratio}, train={"epochs": 2})


@pytest.fixture(scope="module")
def compared(trials: Trials) -> Compared:
    return compared_of(trials)


@pytest.fixture(scope="module")
def html(compared: Compared) -> str:
    return render(compared)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(comparison) == (0, 1)
    assert doctest.testmod(comparison_table) == (0, 2)


def test_page_has_every_section_and_plot(page: Page) -> None:
    sections = ("Ranking", "Failures", "Epoch by epoch", "Training", "One by one", "Length and time", "Every trial")
    assert {*sections, "Settings", "Lineage", *PLOTS} <= set(page.heads)


def test_the_only_scripts_are_those_that_the_policy_names(page: Page, html: str) -> None:
    files = [Path(comparison.__file__).parent / name for name in ("comparison.js", "readings.js")]
    assert page.scripts == [file.read_text(encoding="utf-8") for file in files]
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    named = " ".join(f"'sha256-{name}'" for name in hashes)
    assert policy["content"] == f"default-src 'none'; style-src 'unsafe-inline'; script-src {named}"
    assert html.count("<script") == 2


def test_page_loads_nothing(page: Page, html: str) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "link", "form", "base")
        assert not any(name.startswith("on") or name in ("src", "srcset", "action", "data") for name in attributes)
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html and "http:" not in html and "https:" not in html


def test_ids_are_unique_and_every_reference_leads_somewhere(page: Page, html: str) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, attributes in page.tags for name, value in attributes.items() if name.endswith("href")}
    assert targets | set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


def test_why_a_trial_failed_is_shown_and_not_obeyed(page: Page) -> None:
    assert "</div><script>alert(1)</script> ‹U+001B›[31mred‹U+202E›" in page.said
    assert "dpo, seeds 7, 8" in page.said


def test_every_row_is_there_to_read_and_to_sort_without_the_script(page: Page, trials: Trials) -> None:
    assert len(page.find("table", **{"class": "sortable stack"})) == 4
    cells = page.find("td", **{"class": "text"})
    labels = [attributes["data-by"] for attributes in cells]
    for choice in trials.plan.choices:
        assert labels.count(choice.label) == 1 + 1 + 1 + 2 * 2  # ranking, last epoch, cost, every trial
    assert all(
        re.fullmatch(r"-?[0-9.e+-]+", a["data-by"]) for a in page.find("td") if "data-by" in a and a.get("class") != "text"
    )


def test_every_algorithm_can_be_picked_in_the_plots(page: Page, html: str) -> None:
    assert len(page.find("input", type="radio")) == 1 + 6
    for number in range(5):
        assert len(page.find("g", **{"class": f"series series-{number}"})) >= len(PLOTS) - 2
        assert f"#pick-{number}:checked" in html
    assert not page.find("g", **{"class": "series series-5"})


def test_legend_tables_and_cards_stand_in_the_order_of_the_ranking(page: Page, compared: Compared) -> None:
    picks = [int(attributes["id"].removeprefix("pick-")) for attributes in page.find("input", type="radio")[1:]]
    assert [compared.labels[number] for number in picks] == compared.ranked
    labels = [attributes["data-by"] for attributes in page.find("td", **{"class": "text"})]
    assert labels[:18] == compared.ranked * 3
    assert [head for head in page.heads if head in compared.labels] == [label for label in compared.ranked if label != "dpo"]


def test_plots_tell_each_line_in_the_order_of_the_ranking(page: Page, compared: Compared) -> None:
    told = [
        json.loads(attributes["data-values"]) for tag, attributes in page.tags if tag == "svg" and "data-values" in attributes
    ]
    assert len(told) == len(PLOTS) + 2 * 5 - 1
    entropy = next(plot for plot in told if len(plot["lines"]) == 5 and len(plot["lines"][0]["x"]) == 10)
    assert [line["name"] for line in entropy["lines"]] == [label for label in compared.ranked if label != "dpo"]
    assert all(line["pick"] == f"pick-{compared.labels.index(line['name'])}" for line in entropy["lines"])


def test_what_the_ranking_cannot_carry_is_said_on_the_page(make_trials: Make) -> None:
    assert "Warning: 1 seed: another may rank these 2 otherwise" in Page(render(compared_of(make_trials("reinforce,grpo")))).said


def test_times_are_marked_where_other_work_ran_beside_them(compared: Compared) -> None:
    assert "Whether other work ran beside" in Page(render(compared)).said
    busy = set(compared.trials.filter(label="grpo")["checkpoint_id"])

    def noted(artifact: Artifact) -> Artifact:
        notes = {"other_work": 1.5 if artifact.id in busy else 0.1}
        provenance = artifact.manifest.provenance.model_copy(update={"notes": notes})
        return replace(artifact, manifest=artifact.manifest.model_copy(update={"provenance": provenance}))

    said = Page(render(replace(compared, artifacts={id: noted(one) for id, one in compared.artifacts.items()}))).said
    assert "Times of grpo cannot be compared: other work took up to 1.5 cores of the machine meanwhile." in said
    assert said.count("1.5 ✱") == 1


def test_symbols_have_names(page: Page) -> None:
    assert "pi, the policy that is trained" in page.said and "effective sample size" in page.said
    assert {"KL to the behavior policy", "effective sample size"} <= {a.get("data-name") for a in page.find("td")}


def test_what_an_algorithm_does_not_define_is_said(page: Page) -> None:
    assert page.said.count("Not defined for gspo.") == 2
    assert "No ratio" in page.said


def test_settings_show_what_differs_and_what_is_shared(page: Page) -> None:
    assert "OneSide(low=0.6, high=2, level=token" in page.said
    assert "learning_rate: 1.0e-06" in page.said
    assert "algorithm_args" not in page.said


def test_lineage_names_the_comparison_and_its_parents_once(page: Page, trials: Trials) -> None:
    rows = [attributes["id"] for attributes in page.find("tr") if "id" in attributes]
    assert len(rows) == len(set(rows))
    assert f"a-{record(trials).id[:12]}" in rows
    assert {f"a-{trial.checkpoint.id[:12]}" for trial in trials.done.values()} <= set(rows)


def test_lines_are_means_over_seeds_with_their_span(compared: Compared) -> None:
    line = over_seeds(compared, "reinforce", "entropy")
    assert line["x"].to_list() == pytest.approx([epoch + step / 5 for epoch in range(2) for step in range(5)])
    first = compared.steps.filter(label="reinforce", step=7)["entropy"]
    assert len(first) == 2
    assert line.row(7, named=True) | {"x": 0, "bucket": 0} == {
        "bucket": 0,
        "x": 0,
        "mean": first.mean(),
        "low": first.min(),
        "high": first.max(),
    }
    assert len(over_seeds(compared, "reinforce", "entropy", points=5)) == 5
    assert over_seeds(compared, "gspo", "kl_behavior").is_empty()


def test_epochs_begin_before_training(compared: Compared) -> None:
    line = by_epoch(compared, "grpo", "pass_at_1")
    assert line["x"].to_list() == [0, 1, 2]
    assert line["mean"][0] == compared.before["pass_at_1"]


def test_eighteen_algorithms_look_different() -> None:
    looks = {(look_of(number).color, look_of(number).dashes) for number in range(18)}
    assert len(looks) == 18


def test_one_seed_and_one_epoch_make_a_page(make_trials: Make) -> None:
    page = Page(render(compared_of(make_trials("reinforce,grpo"))))
    assert "Epoch by epoch" not in page.heads and "Failures" not in page.heads
    assert "A line is one training." in page.said


@pytest.mark.parametrize("settings", [{"failing": {"grpo": "no"}}, {"before": False}], ids=str)
def test_whatever_is_missing_the_page_is_written(make_trials: Make, settings: dict[str, Any]) -> None:
    page = Page(render(compared_of(make_trials("grpo", **settings))))
    assert "grpo" in page.said


def test_checkpoints_that_were_deleted_leave_the_table(make_trials: Make) -> None:
    trials = make_trials("reinforce")
    made = record(trials)
    (trial,) = trials.done.values()
    (trial.checkpoint.path / "manifest.json").unlink()
    page = Page(render(read_compared(made, trials.plan.snapshot.store)))
    assert "No training has finished" in page.said
    assert f"{100 * made.summary['algorithms'][0]['pass_at_1']:.1f} %" in page.said


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_table_fits_a_terminal_of_80_columns(make_trials: Make, seeds: int, capsys: pytest.CaptureFixture[str]) -> None:
    trials = make_trials("rec-oneside-nois:low=0.6,high=2.0,grpo", seeds=seeds, failing={"grpo": "no"})
    Console(width=80).print(table_of(record(trials)))
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= 80
    assert ("seeds" in said[0]) is (seeds > 1)
    assert said[-1].split()[:2] == ["grpo", "failed"]
