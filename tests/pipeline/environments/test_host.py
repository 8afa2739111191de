"""Environments in their processes: what they say, and what becomes of those that hang, die or leave processes behind."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.environment import EnvironmentConfig
from pipeline.environments.host import Host
from pipeline.environments.protocol import Observation

KEY = (0, 0, 0)
ODD = """
    import os, random, sys, time

    class Odd:
        deterministic = True

        def start(self, prompt, seed):
            self.count = 0
            return prompt["question"]

        def step(self, action):
            self.count += 1
            match action:
                case "hang":
                    time.sleep(60)
                case "raise":
                    raise ValueError("no such move")
                case "die":
                    os._exit(3)
                case "fork":
                    if os.fork() == 0:
                        time.sleep(60)
                case "detach":
                    if os.fork() == 0:
                        os.setsid()
                        if os.fork() == 0:
                            time.sleep(60)
                        os._exit(0)
                case "come back":
                    os.fork()
                case "nonsense":
                    return "three", "values", "only"
                case "memory":
                    return "x" * (8 << 30), None, False, {}
                case "long":
                    return "x" * (1 << 20), None, False, {}
                case "draw":
                    return str(random.random()), None, False, {}
                case "print":
                    print("{}")
                case "end":
                    return "", 1, True, {}
            return f"{self.count} {os.getpid()}", 0.5, False, {}
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Observation]]:
    """play("hang"): what the environment answers to an action, in an episode that has begun."""
    (tmp_path / "odd.py").write_text(textwrap.dedent(ODD), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = EnvironmentConfig(name="odd:Odd", timeout_seconds=2.0, memory_mib=1024)
    with Host(config) as host:

        def ask(action: str, key: tuple[int, int, int] = KEY, begin: bool = True, seed: int = 7) -> Observation:
            if begin:
                host.start(key, {"question": "begin"}, seed)
                assert host.answers.get(timeout=30)[1].messages[0].content == "begin"
            host.step(key, action)
            answered, said = host.answers.get(timeout=30)
            assert answered == key
            if said.error is not None or said.done:
                host.end(key)
            return said

        yield ask


def pid_of(said: Observation) -> int:
    return int(said.messages[0].content.split()[1])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def below(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_an_environment_answers_and_is_given_every_turn(play: Any) -> None:
    first, second = play("go"), play("go", begin=False)
    assert (first.messages[0].content.split()[0], second.messages[0].content.split()[0]) == ("1", "2")
    assert first.reward == 0.5 and not first.done
    assert play("end", begin=False) == Observation((), 1.0, True)


def test_the_next_episode_begins_anew_in_the_same_process(play: Any) -> None:
    first = pid_of(play("go"))
    play("end", begin=False)
    again = play("go", key=(0, 0, 1))
    assert pid_of(again) == first and again.messages[0].content.startswith("1 ")


def test_episodes_beside_each_other_have_processes_of_their_own(play: Any) -> None:
    assert pid_of(play("go", key=(0, 0, 1))) != pid_of(play("go", key=(0, 0, 2)))


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ("hang", "no answer within 2 s"),
        ("raise", "ValueError: no such move"),
        ("die", "its process ended with exit status 3"),
        ("nonsense", "ValueError: step returned ('three', 'values', 'only'), expected (observation, reward, done, info)"),
        ("memory", "MemoryError (memory limit 1024 MiB)"),
    ],
)
def test_what_goes_wrong_is_said_and_the_next_episode_is_sound(play: Any, action: str, why: str) -> None:
    assert play(action).error == why
    assert play("go", key=(0, 0, 1)).error is None


@pytest.mark.parametrize("action", ["fork", "detach", "come back"])
def test_processes_that_an_episode_leaves_end_with_it(play: Any, action: str) -> None:
    pid = pid_of(play(action))
    play("end", begin=False)
    assert pid_of(play("go", key=(0, 0, 1))) != pid or action == "come back"
    assert action == "come back" or not is_running(pid)


def test_a_million_characters_come_whole(play: Any) -> None:
    assert len(play("long").messages[0].content) == 1 << 20


def test_what_it_prints_is_no_answer(play: Any) -> None:
    assert play("print").error is None


def test_the_global_generator_starts_from_the_episodes_seed(play: Any) -> None:
    drawn = [play("draw", key=(0, 0, number), seed=seed).messages[0].content for number, seed in enumerate([3, 4, 3])]
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_class_that_cannot_be_found_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="environment: no module 'nowhere'"), Host(EnvironmentConfig(name="nowhere:Game")):
        pass


def test_leaving_ends_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(below(os.getpid()))
    with Host(EnvironmentConfig(name="calculator")) as host:
        host.start(KEY, {}, 0)
        host.answers.get(timeout=30)
        assert set(below(os.getpid())) - before
    assert not set(below(os.getpid())) - before
