"""The terminal table and the JSON of `rollbook status`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.common.text import json_safe
from pipeline.look.report import terminal
from pipeline.look.report.terminal import closing_lines, iteration_table
from pipeline.run.state import Run, Stop
from pipeline.run.status import status
from pipeline.store import read_table
from schemas import Rollouts


def test_status_of_a_finished_run_has_every_iteration_and_artifact(run: Run) -> None:
    now = status(run)
    assert (now["name"], now["complete"], now["missing"]) == ("synthetic", True, None)
    assert [row["iteration"] for row in now["iterations"]] == [0, 1, 2]
    first, _, last = now["iterations"]
    assert (first["pass_at_1"], first["pass_at_1_low"], first["pass_at_1_high"]) == pytest.approx((0.25, 0.19, 0.31))
    assert first["pass_at_k"]["4"]["value"] == pytest.approx(0.45)
    assert first["greedy_accuracy"] == pytest.approx(0.29)
    assert (first["kl_behavior"], first["entropy"]) == (0.0125, 1.5)
    rollouts = run.iterations[0].answers.rollouts
    frame = read_table(rollouts, Rollouts, ["reward", "completion_token_ids"])
    assert first["reward_mean"] == pytest.approx(frame["reward"].mean())
    assert first["tokens"] == frame["completion_token_ids"].list.len().sum()
    assert first["artifacts"]["rollouts"] == {"id": rollouts.id, "path": str(rollouts.path)}
    assert first["artifacts"]["checkpoint"]["id"] == now["iterations"][1]["artifacts"]["policy"]["id"]
    assert last["artifacts"]["rollouts"] is last["artifacts"]["shaped"] is last["artifacts"]["checkpoint"] is None
    assert last["reward_mean"] is last["seconds"]["train"] is None
    assert last["seconds"]["evaluate"] >= 0
    assert (first["training"]["reuse"], first["training"]["memory_peak"]) == (0.745, 4_810_000_000)
    assert set(last["training"].values()) == {None}


def test_status_is_strict_json(run: Run) -> None:
    assert json.loads(json.dumps(status(run), allow_nan=False)) == status(run)
    assert json_safe({"a": [float("nan"), (float("inf"), 1)], 2: "x"}) == {"a": [None, [None, 1]], "2": "x"}


def test_artifacts_of_one_engine_start_count_their_time_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = run.iterations[0].answers
    times = [(answers.rollouts, "10:00:09", 8.5), (answers.sampled, "10:00:10", 9.2), (answers.greedy, "10:00:31", 4.0)]
    for artifact, clock, seconds in times:
        provenance = artifact.manifest.provenance.model_copy(update={"created": f"2026-01-02T{clock}+00:00", "seconds": seconds})
        manifest = artifact.manifest.model_copy(update={"provenance": provenance})
        monkeypatch.setitem(artifact.__dict__, "manifest", manifest)
    assert status(run)["iterations"][0]["seconds"]["generate"] == 13.2


def test_status_of_an_unfinished_run_names_what_is_missing(make_run: Callable[..., Run]) -> None:
    now = status(make_run(missing="shape 0"))
    assert (now["complete"], now["missing"]) == (False, "shape 0")
    assert [row["iteration"] for row in now["iterations"]] == [0]
    assert now["iterations"][0]["artifacts"]["shaped"] is None
    assert now["iterations"][0]["pass_at_1"] is not None


def test_a_table_of_large_figures_loses_none_on_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = dict.fromkeys(("generate", "train"), 3810.0)
    now = status(run)
    rows = [{**row, "tokens": 12_345_678, "seconds": seconds, "kl_behavior": 0.00984} for row in now["iterations"]]
    monkeypatch.setattr(terminal, "status", lambda run: {**now, "iterations": rows})
    with (console := Console(width=80)).capture() as shown:
        console.print(iteration_table(run))
    assert all(text in shown.get() for text in ("12,345,678", "1 h 04 min", "0.00984", "25.0 % [19.0,", "31.0]"))
    assert "…" not in shown.get()


def test_table_has_a_row_per_iteration(run: Run) -> None:
    text = shown(run)
    assert text.startswith("synthetic")
    rows = [line for line in text.splitlines() if "%" in line]
    assert len(rows) == 3
    assert "25.0 % [19.0, 31.0]" in rows[0] and "29.0 %" in rows[0] and "0.0125" in rows[0]
    assert "55.0 %" in rows[2] and "–" in rows[2]


@pytest.mark.parametrize(("missing", "rows"), [("base", 0), ("generate 0", 1), ("evaluate 0", 1), ("train 1", 2)])
def test_table_of_an_unfinished_run(make_run: Callable[..., Run], missing: str, rows: int) -> None:
    assert shown(make_run(missing=missing)).count("\n   ") == rows


def test_what_a_record_says_steers_no_terminal(run: Run) -> None:
    stopped = replace(run, stopped=Stop("max_kl", 1, "\x1b[2J gone", healthy=False))
    assert closing_lines(stopped)[0] == "stopped:   after iteration 1: ‹U+001B›[2J gone"
    assert closing_lines(replace(run, missing="\x07"))[0] == "next:      ‹U+0007›"


def shown(run: Run) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(iteration_table(run))
    return console.export_text()


def test_replayed_rollouts_are_counted_and_named(make_run: Callable[..., Run]) -> None:
    first, second, _ = status(make_run(replay={"iterations": 1}))["iterations"]
    assert (first["replayed_completions"], "replay 1 rollouts" in first["artifacts"]) == (0, False)
    assert second["artifacts"]["replay 1 rollouts"] == first["artifacts"]["rollouts"]
    assert second["artifacts"]["replay 1 shaped"] == first["artifacts"]["shaped"]
    assert second["replayed_completions"] > 0
