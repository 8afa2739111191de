"""What a firing works towards, and what the commands refuse."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows import iterate, schedule
from flows.cli import app
from flows.server import HOST, bypass_proxies, check_named_server
from flows.times import first_firing, is_missed, shifted_firing
from pipeline.common.errors import IntegrityError, UserError
from pipeline.config.run import RunConfig
from pipeline.run.record import save_run
from pipeline.run.state import Run, Stop
from pipeline.store import Artifact
from pipeline.store.lock import Lock

Config = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("recorded", "missing", "target"),
    [(None, "generate 0", 2), (2, "train 1", 2), (2, None, 4), (4, None, 6), (4, "evaluate 3", 4)],
    ids=["first firing", "an unfinished one is finished first", "then two more", "and two more", "whatever it was"],
)
def test_a_firing_goes_on_where_the_last_one_ended(
    make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: int | None, missing: str | None, target: int
) -> None:
    config = make_config({"iterations": 2, "run_dir": str(tmp_path / "run")})
    if recorded is not None:
        save_run(Run(config.model_copy(update={"iterations": recorded})), tmp_path / "run")
    looked: list[int] = []

    def chain(config: RunConfig, stages: Any) -> Run:
        looked.append(config.iterations)
        return Run(config, missing=missing if len(looked) == 1 else "generate 9")

    monkeypatch.setattr(schedule, "chain", chain)
    assert schedule.look(config)[1] == target
    assert looked == sorted({recorded or 2, target})


def test_a_run_by_hand_in_between_costs_no_firing(make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config({"iterations": 2, "run_dir": str(tmp_path / "run")})
    save_run(Run(config), tmp_path / "run")  # six are there; the run by hand recorded two
    monkeypatch.setattr(schedule, "chain", lambda c, _: Run(c, missing="generate 7" if c.iterations > 6 else None))
    assert schedule.look(config)[1] == 8
    ended = Stop("max_kl", 5, "KL rose", healthy=False)
    monkeypatch.setattr(schedule, "chain", lambda c, _: Run(c, stopped=ended if c.iterations > 4 else None))
    assert schedule.look(config)[0].stopped == ended


def test_a_firing_does_not_guess_what_a_damaged_record_said(make_config: Config, tmp_path: Path) -> None:
    config = make_config({"iterations": 2, "run_dir": str(tmp_path / "run")})
    save_run(Run(config.model_copy(update={"iterations": 6})), tmp_path / "run")
    (record := tmp_path / "run" / "run.json").write_text(record.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"run\.json: not a valid run record"):
        schedule.look(config)


def test_a_firing_makes_anew_what_was_deleted_of_the_run(
    make_config: Config, make_artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"iterations": 2, "run_dir": str(tmp_path / "run")})
    prompts = make_artifact("prompts")
    save_run(Run(config.model_copy(update={"iterations": 6}), train_prompts=prompts), tmp_path / "run")
    (prompts.path / "manifest.json").unlink()
    monkeypatch.setattr(schedule, "chain", lambda config, stages: Run(config, missing="generate 0"))
    assert schedule.look(config)[1] == 6


def test_a_collapse_ends_a_firing_as_failed_and_a_target_reached_does_not(
    make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(schedule, "emit_event", lambda event, resource, payload: told.append({event: payload}))
    collapsed = Run(make_config(), stopped=Stop("min_entropy", 3, "entropy fell", healthy=False))
    reached = Run(make_config(), stopped=Stop("target_pass_at_1", 3, "pass@1 is 0.900", healthy=True))
    for run, failed in ((collapsed, True), (reached, False)):
        state = schedule._conclude(run, "0 tokens, 1.0 s")
        assert (state.name, state.is_failed()) == ("Stopped", failed)
        assert run.stopped and state.message == f"stopped after iteration 3: {run.stopped.why}; 0 tokens, 1.0 s"
    assert told[0] == {"rollbook.run.stopped": {"rule": "min_entropy", "why": "entropy fell"}}


@pytest.mark.parametrize("cron", ["every night", "61 * * * *", "* * * *", "0 0 30 2 *", "0 0 31 4,6 *"])
def test_a_wrong_cron_line_is_refused(cron: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["deploy", "run.yaml", "--pool", "p", "--cron", cron])
    assert isinstance(result.exception, UserError)
    assert repr(cron) in str(result.exception)


def test_a_cron_line_that_never_fires_is_told_so() -> None:
    with pytest.raises(UserError, match="'0 0 30 2 \\*': never fires, as no month that it names has that day"):
        first_firing("0 0 30 2 *", "UTC")
    assert first_firing("0 0 29 2 *", "UTC").day == 29


def test_a_cron_line_is_in_its_zone() -> None:
    assert str(first_firing("0 9 * * *", "Europe/Berlin").tzinfo) == "Europe/Berlin"
    assert first_firing("0 9 * * *", "Europe/Berlin").hour == 9
    with pytest.raises(UserError, match=r"'europe/berlin': there is no such zone\. Did you mean Europe/Berlin\?"):
        first_firing("0 9 * * *", "europe/berlin")


@pytest.mark.parametrize(
    ("cron", "timezone", "shifted"),
    [
        ("30 2 * * *", "Europe/Berlin", "2027-03-28 01:30"),
        ("30 2 * * 0", "Europe/Berlin", "2027-03-28 01:30"),
        ("30 2 * * 1", "Europe/Berlin", None),
        ("0 9 * * *", "Europe/Berlin", None),
        ("0 0 * * *", "America/New_York", None),
        ("30 2 * * *", "UTC", None),
        ("30 2 * * *", "Asia/Tokyo", None),
        ("0 * * * *", "Europe/Berlin", None),
        ("*/5 * * * *", "Europe/Berlin", None),
    ],
)
def test_a_firing_that_a_change_of_clocks_moves_is_found(cron: str, timezone: str, shifted: str | None) -> None:
    found = shifted_firing(cron, timezone, datetime(2026, 12, 1, tzinfo=UTC))
    assert (found and f"{found:%Y-%m-%d %H:%M}") == shifted


def test_of_firings_that_were_missed_only_the_newest_works() -> None:
    """The server was away from midnight to six, with a firing every two hours."""
    back = datetime(2026, 12, 1, 6, 5, tzinfo=UTC)
    hours = [hour for hour in (0, 2, 4, 6) if not is_missed("0 */2 * * *", "UTC", back.replace(hour=hour, minute=0), back)]
    assert hours == [6]
    assert not is_missed("0 2 * * *", "UTC", back.replace(hour=2, minute=0), back)
    slow = back.replace(hour=6, minute=0)
    assert not is_missed("* * * * *", "UTC", slow, back)
    assert is_missed("* * * * *", "UTC", slow, back.replace(minute=11))


def test_when_a_deployment_fires_is_told_with_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[schedule.Firings] = []
    monkeypatch.setattr(schedule, "deploy", lambda *given: told.append(given[-1]) or "scheduled/small")
    line = ["deploy", "run.yaml", "--pool", "p", "--timezone", "Europe/Berlin"]
    result = CliRunner().invoke(app, [*line, "--cron", "30 2 * * *"])
    assert "scheduled/small: fires at '30 2 * * *' (Europe/Berlin), next 20" in result.stderr
    assert "clocks of Europe/Berlin change on " in result.stderr and "fires at 01:30 then" in result.stderr
    assert told[0].schedule is not None and told[0].schedule.timezone == "Europe/Berlin"
    assert "clocks" not in CliRunner().invoke(app, [*line, "--cron", "0 9 * * *"]).stderr


def test_what_prefect_prints_is_no_part_of_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def deploy(*_: object) -> str:
        print("Successfully created all deployments!")
        return "scheduled/small"

    monkeypatch.setattr(schedule, "deploy", deploy)
    result = CliRunner().invoke(app, ["deploy", "run.yaml", "--pool", "p", "--json"])
    assert json.loads(result.stdout) == {"deployment": "scheduled/small", "pool": "p", "cron": None, "timezone": "UTC"}
    assert "Successfully" in result.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "nonsense", "http://[::1/api"])
def test_a_server_that_is_named_and_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(UserError, match=r"PREFECT_API_URL=.*: no Prefect server answers there"):
        check_named_server()


def test_any_answer_of_a_named_server_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
        threading.Thread(target=server.handle_request, daemon=True).start()
        check_named_server()  # it answers 501: that is Prefect's to judge


def test_a_server_that_is_away_for_a_moment_costs_a_bar_and_not_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def create(progress: float, **_: Any) -> None:
        if progress < 50:
            raise ConnectionError("away")
        drawn.append(progress)

    monkeypatch.setattr(iterate, "create_progress_artifact", create)
    bars = iterate.ProgressArtifacts()
    for done in (1, 9):
        bars.tell("train 0", {"event": "progress", "done": done, "total": 10})
    assert drawn == [90.0]


@pytest.mark.parametrize(
    ("told", "then"), [({}, HOST), ({"NO_PROXY": "a.example"}, f"a.example,{HOST}"), ({"no_proxy": "*"}, "*")]
)
def test_no_proxy_is_asked_for_the_server_beside_a_run(monkeypatch: pytest.MonkeyPatch, told: dict[str, str], then: str) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    bypass_proxies()
    bypass_proxies()
    assert os.environ["no_proxy"] == then


def test_the_last_phase_of_a_scheduled_run_must_be_open(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings({"phases": [{"iterations": 0}]})), encoding="utf-8")
    firings = schedule.Firings(cron="0 2 * * *", timezone="UTC", max_hours=None)
    with pytest.raises(UserError, match=r"phases.0.iterations: it ends with iteration 0, .* expected 0-, which holds"):
        schedule.parameters_of(config, [], firings)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_firing_whose_process_and_server_are_gone_does_not_hold_up_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server forgets its leases when it ends, and its database keeps the slot: without `free_slot` it is taken for good."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    program = (
        "import sys; from pathlib import Path; from flows.server import LocalServer\n"
        "server = LocalServer(whole=True); server.wait()\n"
        "from prefect import get_client; from prefect.states import Pending, Running\n"
        "from flows.schedule import ALONE, free_slot, scheduled\n"
        "told = {'directory': '.', 'config': 'x.yaml'}\n"
        "if sys.argv[1] == 'begin': scheduled.to_deployment(name='tiny', parameters=told, concurrency_limit=ALONE).apply()\n"
        "if sys.argv[1] == 'free': print(free_slot('tiny', Path(sys.argv[2])))\n"
        "with get_client(sync_client=True) as client:\n"
        "    run = client.create_flow_run_from_deployment(client.read_deployment_by_name('scheduled/tiny').id)\n"
        "    state = client.set_flow_run_state(run.id, Pending()).state\n"
        "    if state.is_pending(): state = client.set_flow_run_state(run.id, Running()).state\n"
        "print(state.type.value); server.stop()\n"
    )

    def said(what: str) -> list[str]:
        command = [sys.executable, "-P", "-c", program, what, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split()[-2:]

    assert said("begin")[-1] == "RUNNING"  # and it never says that it ended
    assert said("again")[-1] == "CANCELLED"
    with Lock(tmp_path / "schedule.lock"):
        assert said("free") == ["0", "CANCELLED"], "it is at work"
    assert said("free") == ["1", "RUNNING"]
