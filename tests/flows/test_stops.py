"""How a stop is told: loudly and with a status of its own where something went wrong, quietly where a goal was reached."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from flows.commands.console import print_closing
from flows.commands.run import _refuse_wrong_stop
from pipeline.common.errors import RunStopped
from pipeline.config.run import RunConfig
from pipeline.run.state import Run, Stop

Config = Callable[..., RunConfig]
WRONG = Stop("no_signal", 0, "all rewards are 0, so there is nothing to learn from", healthy=False)
REACHED = Stop("target_pass_at_1", 3, "pass@1 is 0.900; the target was 0.9", healthy=True)


def test_a_run_that_went_wrong_ends_with_a_status_of_its_own(make_config: Config) -> None:
    with pytest.raises(RunStopped, match=r"small: stop\.no_signal ended it after iteration 0: all rewards are 0, so") as told:
        _refuse_wrong_stop(Run(make_config(), stopped=WRONG))
    assert told.value.exit_code == 3


def test_a_run_that_reached_its_goal_or_goes_on_ends_well(make_config: Config) -> None:
    _refuse_wrong_stop(Run(make_config(), stopped=REACHED))
    _refuse_wrong_stop(Run(make_config(), missing="train 0"))


def test_the_terminal_shows_in_red_what_went_wrong(make_config: Config) -> None:
    red = "\x1b[1;31mstopped:   after iteration"
    assert f"{red} 0: all rewards are 0, so there is nothing to learn from" in printed(Run(make_config(), stopped=WRONG))
    assert printed(Run(make_config(), stopped=REACHED)).startswith("stopped:   after iteration 3: pass@1 is 0.900; ")


def printed(run: Run) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120)
    print_closing(console, run)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
