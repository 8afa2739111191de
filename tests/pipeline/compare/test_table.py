"""The comparison artifact: its rows, its ranking, what it is made from, and that the same trials are one comparison."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from flows.trials import look
from pipeline.compare.plan import make_plan
from pipeline.compare.ranking import rank, solved_rates
from pipeline.compare.table import comparison_request, record
from pipeline.compare.trials import Trials
from pipeline.look.report.comparison_table import comparison_table
from pipeline.store import Artifact, read_table
from schemas import Comparison, ComparisonTiming

Make = Callable[..., Trials]
WHY = "/rollouts/1: nothing is kept"


@pytest.fixture(scope="module")
def trials(make_trials: Make) -> Trials:
    """Two algorithms that ended well and one that failed, two seeds each."""
    strengths = {"reinforce": 0.1, "rec-oneside-nois": 0.5}
    return make_trials("reinforce,rec-oneside-nois,grpo", seeds=2, failing={"grpo": WHY}, strengths=strengths)


def test_there_is_a_row_for_every_trial(trials: Trials) -> None:
    rows = read_table(record(trials), Comparison)
    assert rows.select("label", "seed", "epoch", "status").rows() == [
        ("reinforce", 7, 3, "ok"),
        ("rec-oneside-nois", 7, 3, "ok"),
        ("grpo", 7, 3, "failed"),
        ("reinforce", 8, 3, "ok"),
        ("rec-oneside-nois", 8, 3, "ok"),
        ("grpo", 8, 3, "failed"),
    ]
    assert rows["error"].to_list() == [None, None, WHY] * 2


def test_a_row_holds_the_evaluation_and_the_means_of_the_last_epoch(trials: Trials) -> None:
    row = read_table(record(trials), Comparison).row(0, named=True)
    trial = next(iter(trials.done.values()))
    summary = trial.judged.evaluation.summary
    assert (row["pass_at_1"], row["pass_at_1_low"]) == (summary["pass_at"]["1"]["value"], summary["pass_at"]["1"]["low"])
    assert (row["greedy"], row["completion_tokens_mean"]) == (summary["greedy"]["value"], summary["completion_tokens_mean"])
    metrics = pl.read_parquet(trial.checkpoint.tables("metrics")).filter(pl.col("epoch") == 2)
    assert len(metrics) == 5
    assert row["kl_behavior"] == metrics["kl_behavior"].mean()
    assert (row["steps"], row["checkpoint_id"]) == (15, trial.checkpoint.id)


def test_every_checkpoint_and_evaluation_is_a_parent(trials: Trials) -> None:
    parents = {parent.role: parent.id for parent in record(trials).manifest.content.parents}
    snapshot = trials.plan.snapshot
    assert parents["rollouts"] == snapshot.rollouts.id and parents["policy"] == snapshot.policy.id
    assert trials.before and parents["evaluation before training"] == trials.before.evaluation.id
    for variant, trial in trials.done.items():
        name = f"{variant.choice.label} seed {variant.seed} epoch 3"
        assert parents[f"checkpoint {name}"] == trial.checkpoint.id
        assert parents[f"evaluation {name}"] == trial.judged.evaluation.id
    assert len(parents) == 4 + 2 * len(trials.done)


def test_wall_times_are_no_part_of_the_id(trials: Trials) -> None:
    made = record(trials)
    assert [file.path for file in made.manifest.content.files] == ["comparison.parquet"]
    assert [file.path for file in made.manifest.provenance.files] == ["timing.parquet"]
    assert read_table(made, ComparisonTiming)["train_seconds"].null_count() == 0


def test_the_same_trials_are_one_comparison_and_others_another(trials: Trials, make_trials: Make) -> None:
    assert record(trials).path == record(trials).path
    fewer = Trials(trials.plan, trials.before, trials.done, dict.fromkeys(trials.failed, "another reason"))
    assert comparison_request(fewer).key != comparison_request(trials).key


def test_how_the_work_is_done_and_when_it_is_refused_make_no_other_comparison(trials: Trials) -> None:
    def key(**train: Any) -> str:
        config = trials.plan.config.model_copy(update={"train": trials.plan.config.train.model_copy(update=train)})
        return comparison_request(Trials(replace(trials.plan, config=config), trials.before, trials.done, trials.failed)).key

    settings: dict[str, Any] = {
        "max_logprob_difference": 0.3,
        "save_every_steps": 7,
        "processes": 2,
        "tokens_per_micro_batch": 64,
    }
    assert key(**settings) == key() != key(learning_rate=1e-3)


def test_an_algorithms_figure_is_the_mean_of_its_seeds_and_gains_are_taken_prompt_by_prompt(trials: Trials) -> None:
    best, second, failed = record(trials).summary["algorithms"]
    assert [row["label"] for row in (best, second, failed)] == ["rec-oneside-nois", "reinforce", "grpo"]
    single = [
        t.judged.evaluation.summary["pass_at"]["1"]["value"] for v, t in trials.done.items() if v.choice.name == "reinforce"
    ]
    assert second["pass_at_1"] == pytest.approx(sum(single) / 2)
    assert (second["pass_at_1_least"], second["pass_at_1_greatest"]) == (min(single), max(single))
    assert trials.before
    before = solved_rates(trials.before.evaluation).mean()
    assert second["gain"] == pytest.approx(second["pass_at_1"] - before)
    assert second["gain_low"] < second["gain"] < second["gain_high"]
    assert second["behind"] == pytest.approx(best["pass_at_1"] - second["pass_at_1"])
    assert best["behind"] is None
    assert (failed["pass_at_1"], failed["seeds"], failed["failed"]) == (None, 0, 2)


def test_with_one_seed_the_interval_is_the_evaluations(make_trials: Make) -> None:
    trials = make_trials("reinforce")
    (trial,) = trials.done.values()
    expected = trial.judged.evaluation.summary["pass_at"]["1"]
    (row,) = record(trials).summary["algorithms"]
    assert {end: row[f"pass_at_1{name}"] for end, name in (("value", ""), ("low", "_low"), ("high", "_high"))} == expected


def test_without_a_judgment_before_training_there_is_no_gain(make_trials: Make) -> None:
    trials = make_trials("reinforce", before=False)
    (row,) = rank(trials, read_table(record(trials), Comparison))
    assert (row["gain"], row["gain_low"]) == (None, None)
    assert row["pass_at_1"] is not None


def test_a_curve_is_ranked_by_its_last_epoch(make_trials: Make) -> None:
    trials = make_trials("reinforce", curve=True)
    made = record(trials)
    assert read_table(made, Comparison)["epoch"].to_list() == [1, 2, 3]
    last = next(trial for variant, trial in trials.done.items() if variant.epochs == 3)
    assert made.summary["algorithms"][0]["pass_at_1"] == last.judged.evaluation.summary["pass_at"]["1"]["value"]


def test_trials_that_are_finished_are_found_and_those_that_are_not_are_named(make_synthetic: Any) -> None:
    run = make_synthetic()
    run.save_run()
    plan = make_plan(run.root, ["grpo,reinforce"])
    first, second = plan.variants()
    run.trial(plan, first, 0.1)
    trials = look(plan)
    assert trials.before and trials.before.evaluation.id == run.before.evaluation.id
    assert (list(trials.done), trials.missing, trials.complete) == ([first], [second], False)
    run.trial(plan, second, 0.1)
    assert look(plan).complete


def test_an_algorithm_that_the_sampling_does_not_serve_is_refused_without_work(make_synthetic: Any) -> None:
    run = make_synthetic(generate={"temperature": 0.0})
    run.save_run()
    plan = make_plan(run.root, ["grpo,reinforce"])
    grpo, reinforce = plan.variants()
    trials = look(plan)
    assert trials.missing == [reinforce]
    assert "grpo needs the ratio pi/mu, and these rollouts were drawn greedily" in trials.failed[grpo]


def test_rollouts_from_elsewhere_are_judged_by_what_they_are_and_not_by_the_runs_sampling(make_synthetic: Any) -> None:
    run = make_synthetic(generate={"top_p": 0.95})
    own = run.plan("grpo,reinforce,dapo,dapo:limit=64")

    def refused(rollouts: Artifact) -> dict[str, str]:
        plan = replace(own, snapshot=replace(own.snapshot, rollouts=rollouts))
        return {variant.choice.label: why for variant, why in look(plan).failed.items()}

    whole = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64}
    assert set(refused(own.snapshot.rollouts)) == {"grpo", "dapo", "dapo:limit=64"}
    assert refused(run.rollouts_of("drawn whole", sampling=whole)) == {}
    bare = refused(run.rollouts_of("imported", without_logprobs=3))
    assert set(bare) == {"grpo", "dapo", "dapo:limit=64"}
    assert "grpo needs behavior_logprobs, and 3 of these completions have none" in bare["grpo"]
    unlimited = refused(run.rollouts_of("imported with logprobs", without_logprobs=0))
    assert set(unlimited) == {"dapo"} and "Set reward.limit in train.algorithm_args" in unlimited["dapo"]


PROGRAM = """
import json, sys
import flows.cli
sys.argv = ["rollbook", *json.loads(sys.argv[1])]
try:
    flows.cli.main()
except SystemExit as end:
    assert "prefect" not in sys.modules, "Prefect was loaded"
    assert "torch" not in sys.modules, "torch was loaded"
    raise
"""


def rollbook(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", PROGRAM, json.dumps(arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_the_command_of_a_finished_comparison_answers_without_starting_anything(make_synthetic: Any, tmp_path: Path) -> None:
    run = make_synthetic()
    run.save_run()
    plan = make_plan(run.root, ["grpo,reinforce"])
    for number, variant in enumerate(plan.variants()):
        run.trial(plan, variant, 0.3 * number)
    said = rollbook("compare", str(run.root), "--algorithms", "grpo,reinforce", "--no-baseline", "--json", cwd=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    answer = json.loads(said.stdout)
    assert [row["label"] for row in answer["algorithms"]] == ["reinforce", "grpo"]
    assert [row["status"] for row in answer["trials"]] == ["ok", "ok"]
    assert Path(answer["page"]) == run.root / "comparison.html"
    assert Path(answer["page"]).exists() and not (run.root / "comparisons").exists()
    table = rollbook("compare", str(run.rollouts.path), "-a", "reinforce", "--no-baseline", "--out", "one.html", cwd=tmp_path)
    assert "before training" in table.stdout and "reinforce" in table.stdout
    assert (tmp_path / "one.html").exists()


def test_every_gain_is_told_against_the_baseline_too(make_trials: Make) -> None:
    trials = make_trials("reinforce,best-of-n", seeds=2, strengths={"reinforce": 0.5, "best-of-n": 0.1})
    assert "over_baseline" not in rank(trials, read_table(record(trials), Comparison))[0]
    trials.plan = replace(trials.plan, baseline="best-of-n")
    compared = record(trials)
    by_label = {row["label"]: row for row in compared.summary["algorithms"]}
    ours, theirs = by_label["reinforce"], by_label["best-of-n"]
    assert ours["over_baseline"] == pytest.approx(ours["pass_at_1"] - theirs["pass_at_1"])
    assert ours["over_baseline_low"] < ours["over_baseline"] < ours["over_baseline_high"]
    assert theirs["over_baseline"] is None
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(compared))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "over SFT" in lines[0] and max(map(len, lines)) <= 80
    assert f"{100 * ours['over_baseline']:+.1f}" in next(line for line in lines if line.startswith("reinforce"))


def test_the_baseline_is_added_where_it_is_not_asked_for(make_synthetic: Any) -> None:
    run = make_synthetic()
    run.save_run()
    plans = [make_plan(run.root, [asked], baseline=True) for asked in ("grpo", "best-of-n")]
    assert [[choice.label for choice in plan.choices] for plan in plans] == [["grpo", "best-of-n"], ["best-of-n"]]


def test_the_command_trains_the_baseline_unless_told_not_to_and_says_so_to_machines(make_synthetic: Any, tmp_path: Path) -> None:
    run = make_synthetic()
    run.save_run()
    plan = make_plan(run.root, ["grpo"], baseline=True)
    for variant in plan.variants():
        run.trial(plan, variant, 0.4 if variant.choice.label == "grpo" else 0.1)
    said = rollbook("compare", str(run.root), "--algorithms", "grpo", "--json", cwd=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    answer = json.loads(said.stdout)
    assert answer["baseline"] == "best-of-n"
    grpo, baseline = answer["algorithms"]
    assert grpo["over_baseline"] == pytest.approx(grpo["pass_at_1"] - baseline["pass_at_1"])
    assert grpo["over_baseline_low"] < grpo["over_baseline"] < grpo["over_baseline_high"]
    page = (run.root / "comparison.html").read_text(encoding="utf-8")
    assert "over best-of-n" in page and "best-of-n, SFT on each group" in page
