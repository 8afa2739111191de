"""Several engines as one. Their processes are light ones that answer from seeds, as engines do, and die when they are told to."""

from __future__ import annotations

import itertools
import os
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import StageCrashed, StageFailed, UserError
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.engines import hands
from pipeline.generate.engines.devices import shares_of_cores, shares_of_gpus
from pipeline.generate.engines.fleet import Fleet
from pipeline.generate.engines.hands import ThisMachine

ENGINE = """
    import json, os, signal, sys
    from pathlib import Path
    from pipeline.generate.engine import Reply
    from pipeline.generate.engines.wire import asks_from_json, reply_to_json
    from pipeline.run.process import as_child

    reporter = as_child()
    here = Path(__file__).parent
    for line in sys.stdin:
        message = json.loads(line)
        if "load" in message or "reload" in message:
            if (here / "unfit").exists():
                reporter.send("error", kind="UserError", message="vLLM cannot load it")
                os._exit(2)
            reporter.send("ready", name="light")
        elif "group" in message:
            for ask in asks_from_json(message):
                with (here / "asked").open("a") as asked:
                    asked.write(f"{os.getpid()} {ask.key[1]} {ask.key[2]}\\n")
                deaths = here / f"deaths-{ask.key[1]}-{ask.key[2]}"
                if deaths.exists() and (left := int(deaths.read_text())):
                    deaths.write_text(str(left - 1))
                    os.kill(os.getpid(), signal.SIGKILL)
                tokens = [ask.seed % 7, *ask.prompt_token_ids]
                reply = Reply(ask.key, tokens, [-0.5] * len(tokens), "stop", None, None)
                reporter.send("replies", replies=[reply_to_json(reply)])
"""


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


class Engines:
    def __init__(self, directory: Path) -> None:
        self.directory, self.reporter = directory, Notes()
        self.started: list[Fleet] = []

    def __call__(self, replicas: int, **config: Any) -> Fleet:
        settings = EngineConfig(replicas=replicas, **config)
        reporter: Any = self.reporter
        fleet = Fleet(Path("model"), settings, "float32", trust_remote_code=False, reporter=reporter, hands=ThisMachine(settings))
        self.started.append(fleet)
        return fleet

    def dies(self, group: int, sample: int, times: int) -> None:
        """Whoever is asked for that completion is killed, so often."""
        (self.directory / f"deaths-{group}-{sample}").write_text(str(times))

    @property
    def asked(self) -> list[tuple[int, ...]]:
        """Process, group and sample of every request that came to an engine."""
        return [tuple(map(int, line.split())) for line in (self.directory / "asked").read_text().splitlines()]


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    (tmp_path / "light_engine.py").write_text(textwrap.dedent(ENGINE), encoding="utf-8")
    monkeypatch.setattr(hands, "MODULE", "light_engine")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    made = Engines(tmp_path)
    yield made
    for fleet in made.started:
        fleet.end()


def asks(groups: int, samples: int) -> list[CompletionRequest]:
    sampling = SamplingConfig()
    return [
        CompletionRequest((0, group, sample), [group, 5], sampling, seed=10 * group + sample)
        for group in range(groups)
        for sample in range(samples)
    ]


def grouped(wanted: list[CompletionRequest]) -> Iterator[list[CompletionRequest]]:
    for _, group in itertools.groupby(wanted, key=lambda ask: ask.key[:2]):
        yield list(group)


def answers(fleet: Fleet, wanted: list[CompletionRequest], in_flight: int = 4) -> list[Reply]:
    return [reply for replies in fleet.run(grouped(wanted), in_flight) for reply in replies]


def expected(wanted: list[CompletionRequest]) -> list[Reply]:
    return [
        Reply(ask.key, [ask.seed % 7, *ask.prompt_token_ids], [-0.5] * 3, "stop", None, None)
        for ask in sorted(wanted, key=lambda ask: ask.key)
    ]


def in_order(replies: list[Reply]) -> list[Reply]:
    return sorted(replies, key=lambda reply: reply.key)


@pytest.mark.parametrize("replicas", [1, 3])
def test_any_number_of_engines_gives_every_completion_once(engines: Engines, replicas: int) -> None:
    wanted = asks(groups=12, samples=3)
    fleet = engines(replicas)
    assert fleet.name == "light"
    assert in_order(answers(fleet, wanted)) == expected(wanted)
    assert len(fleet.tokens) == replicas and sum(fleet.tokens) == 3 * 36
    assert len({process for process, _, _ in engines.asked}) == replicas


def test_a_group_stays_with_one_engine_as_far_as_it_runs_so_much_at_once(engines: Engines) -> None:
    answers(engines(2, max_num_seqs=2), asks(groups=6, samples=5))
    by_group: dict[int, list[int]] = {}
    for process, group, sample in engines.asked:
        if sample in (0, 1):
            by_group.setdefault(group, []).append(process)
    assert all(first == second for first, second in by_group.values())


def test_little_work_is_spread(engines: Engines) -> None:
    answers(engines(3), asks(groups=3, samples=4), in_flight=1000)
    assert sorted(len({g for p, g, _ in engines.asked if p == process}) for process in {p for p, _, _ in engines.asked}) == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_engine_that_dies_is_replaced_and_others_do_what_it_left(engines: Engines, replicas: int) -> None:
    engines.dies(group=4, sample=1, times=1)
    wanted = asks(groups=10, samples=2)
    fleet = engines(replicas)
    assert in_order(answers(fleet, wanted)) == expected(wanted)
    (note,) = engines.reporter.notes
    assert note.endswith(" was ended by SIGKILL (out of memory, perhaps); another takes its place")
    assert len({process for process, _, _ in engines.asked}) <= replicas + 1
    twice = [key for key in {(g, s) for _, g, s in engines.asked} if [a[1:] for a in engines.asked].count(key) > 1]
    assert (4, 1) in twice and len(twice) <= 4, "only what the dead one had in hand is asked again"


def test_completions_that_kill_every_engine_end_the_work(engines: Engines) -> None:
    engines.dies(group=2, sample=0, times=3)
    with pytest.raises(StageCrashed, match="was ended by SIGKILL"):
        answers(engines(2), asks(groups=6, samples=2))
    assert [asked[1:] for asked in engines.asked].count((2, 0)) == 3


def test_engines_that_die_in_turn_are_replaced_in_turn(engines: Engines) -> None:
    for group in range(5):
        engines.dies(group, sample=0, times=1)
    wanted = asks(groups=8, samples=2)
    assert in_order(answers(engines(2), wanted, in_flight=1)) == expected(wanted)
    assert len(engines.reporter.notes) == 5


def test_a_model_that_cannot_be_loaded_is_an_answer(engines: Engines) -> None:
    (engines.directory / "unfit").touch()
    with pytest.raises(UserError, match="vLLM cannot load it") as told:
        engines(2)
    assert not isinstance(told.value, StageFailed)


def test_each_engine_answers_a_check(engines: Engines) -> None:
    wanted = asks(groups=2, samples=1)
    fleet = engines(2)
    assert [in_order(replies) for replies in fleet.answers_of_each(wanted)] == [expected(wanted)] * 2


def test_nothing_is_left_of_engines_that_ended(engines: Engines) -> None:
    fleet = engines(2)
    answers(fleet, asks(groups=4, samples=1))
    processes = {process for process, _, _ in engines.asked}
    fleet.end()
    assert not [process for process in processes if Path(f"/proc/{process}").exists()]


def test_engines_are_as_many_as_the_gpus_hold() -> None:
    four = ("0", "1", "2", "3")
    assert shares_of_gpus(EngineConfig(), four) == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in four]
    assert shares_of_gpus(EngineConfig(tensor_parallel_size=4), four) == [{}]
    assert shares_of_gpus(EngineConfig(replicas=1), four) == [{}]
    assert shares_of_gpus(EngineConfig(replicas=2), ("GPU-a", "GPU-b", "GPU-c")) == [
        {"CUDA_VISIBLE_DEVICES": "GPU-a"},
        {"CUDA_VISIBLE_DEVICES": "GPU-b"},
    ]
    with pytest.raises(UserError, match="3 engines of 2 GPUs each take 6, and 4 are visible here"):
        shares_of_gpus(EngineConfig(replicas=3, tensor_parallel_size=2), four)


def test_engines_on_a_cpu_share_its_cores() -> None:
    assert shares_of_cores(EngineConfig(), 16) == [{}]
    assert shares_of_cores(EngineConfig(replicas=3), 16) == [{"OMP_NUM_THREADS": "5"}] * 3
    assert shares_of_cores(EngineConfig(replicas=4), 2) == [{"OMP_NUM_THREADS": "1"}] * 4


def test_a_fleet_without_requests_waits_until_it_is_woken(engines: Engines) -> None:
    """An environment thinks: there is nothing to draw now, and will be."""
    made, (first, second) = engines(2), asks(2, 1)

    def turns() -> Iterator[list[CompletionRequest]]:
        yield [first]
        threading.Timer(0.3, made.wake).start()
        yield []
        yield [second]

    replies = [reply for answered in made.run(turns(), in_flight=4) for reply in answered]
    assert in_order(replies) == expected([first, second])
