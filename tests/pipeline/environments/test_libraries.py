"""Environments of other libraries, played as the library itself has them."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.environment import EnvironmentConfig
from pipeline.environments.host import Host
from pipeline.environments.protocol import Observation
from pipeline.environments.registry import check_environment, recipe_of_environment
from pipeline.environments.textarena_games import TextArenaGames
from pipeline.environments.verifiers_tasks import VerifiersTasks, main

ROOT = Path(__file__).resolve().parents[3]
SUMS = """
    import verifiers.v1 as vf

    class SumData(vf.TaskData):
        answer: str

    class SumTask(vf.Task[SumData, vf.State, vf.TaskConfig]):
        @vf.reward(weight=2.0)
        async def right(self, trace: vf.Trace) -> float:
            return float(self.data.answer in trace.last_reply)

    class SumConfig(vf.TasksetConfig):
        count: int = 4

    class Sums(vf.Taskset[SumTask, SumConfig]):
        def load(self):
            for n in range(self.config.count):
                yield SumTask(SumData(name=f"sum-{n}", prompt=f"What is {n}+1?", answer=str(n + 1)), self.config.task)

    __all__ = ["Sums"]
"""
GUESSES = """
    import verifiers.v1 as vf

    class GuessData(vf.TaskData):
        number: int

    class GuessTask(vf.Task[GuessData, vf.State, vf.TaskConfig]):
        @vf.stop
        async def given_up(self, trace: vf.Trace) -> bool:
            return "give up" in trace.last_reply

    class Guesses(vf.Taskset[GuessTask, vf.TasksetConfig]):
        def load(self):
            for n in range(3):
                yield GuessTask(GuessData(name=f"guess-{n}", system_prompt="Guess a number.", number=n), self.config.task)

    class GuessConfig(vf.EnvConfig):
        player: vf.AgentConfig = vf.AgentConfig()

    class GuessEnv(vf.Env[GuessConfig]):
        async def run(self, task, agents):
            won = 0.0
            async with agents.player.interaction(task) as game:
                segment = await game.turn("Your guess?")
                while not segment.terminated:
                    if segment.last_reply == str(task.data.number):
                        won = 1.0
                        break
                    segment = await game.turn("No. Again?")
            game.trace.record_reward("won", won)

    __all__ = ["Guesses", "GuessEnv"]
"""
BOXED = """
    import verifiers.v1 as vf

    class BoxTask(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
        @vf.reward
        async def ran(self, runtime: vf.Runtime) -> float:
            return 1.0

    class Boxes(vf.Taskset[BoxTask, vf.TasksetConfig]):
        def load(self):
            yield BoxTask(vf.TaskData(prompt="Run it."), self.config.task)

    __all__ = ["Boxes"]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, source in (("my_sums", SUMS), ("my_guesses", GUESSES), ("my_boxes", BOXED)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Play:
    """One episode after the other, in a process."""

    def __init__(self, host: Host) -> None:
        self._host, self._key = host, (0, 0, 0)

    def start(self, **prompt: Any) -> Observation:
        self._key = (0, 0, self._key[2] + 1)
        self._host.start(self._key, {"prompt_id": "p", "question": "", "answer": None, "metadata": {}, **prompt}, 0)
        return self._host.answers.get(timeout=60)[1]

    def say(self, action: str) -> Observation:
        self._host.step(self._key, action)
        return self._host.answers.get(timeout=60)[1]


@contextmanager
def played(name: str, **args: Any) -> Iterator[Play]:
    with Host(EnvironmentConfig(name=name, args=args)) as host:
        yield Play(host)


@pytest.mark.needs("verifiers")
def test_a_task_of_verifiers_is_answered_once_and_scored_by_its_rewards(here: Path) -> None:
    with played("verifiers_tasks", taskset="my_sums", config={"taskset": {"count": 2}}) as play:
        assert play.start(question="What is 1+1?") == Observation()
        assert play.say("It is 2.") == Observation(reward=2.0, done=True)
        play.start(question="What is 1+1?")
        assert play.say("It is 3.").reward == 0.0
        assert "no task of the taskset asks this: 'What is 2+1?'" in str(play.start(question="What is 2+1?").error)


@pytest.mark.needs("verifiers")
def test_an_environment_of_verifiers_speaks_between_turns(here: Path) -> None:
    VerifiersTasks.prepare(None, "my_guesses")

    def begun() -> VerifiersTasks:
        episode = VerifiersTasks("my_guesses")
        assert episode.start({"question": "guess-2"}, 0) == "Your guess?"
        return episode

    episode = begun()
    assert episode.step("7") == ("No. Again?", None, False, {})
    assert episode.step("2") == (None, 1.0, True, {})
    assert begun().step("I give up") == (None, 0.0, True, {})


@pytest.mark.needs("verifiers")
def test_tasks_of_verifiers_are_written_as_data(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["verifiers_tasks", "my_guesses", "--limit", "2"])
    main()
    first, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["id"] == "guess-0" and [one["role"] for one in first["question"]] == ["system", "user"]
    monkeypatch.setattr("sys.argv", ["verifiers_tasks", "nothing_here"])
    with pytest.raises(SystemExit, match=r"environment\.args\.taskset: nothing_here: ModuleNotFoundError"):
        main()


@pytest.mark.needs("verifiers")
def test_a_taskset_of_verifiers_may_be_a_file(here: Path) -> None:
    (here / "sets").mkdir()
    (here / "my_sums.py").rename(here / "sets" / "other_sums.py")
    with played("verifiers_tasks", taskset="sets/other_sums.py") as play:
        play.start(question="What is 1+1?")
        assert play.say("It is 2.").reward == 2.0
    with pytest.raises(UserError, match=r"environment\.args\.taskset: sets/none\.py: no such file"):
        VerifiersTasks.prepare(None, "sets/none.py")


@pytest.mark.needs("verifiers")
def test_the_example_gives_a_second_try() -> None:
    args = {"taskset": str(ROOT / "examples/word_tries.py"), "limit": 2}
    files = [str(ROOT / "data/words/train.jsonl")]
    with played("verifiers_tasks", **args, config={"taskset": {"files": files}}) as play:
        question = "Mia has 12 marbles and buys 6 more. How many marbles does Mia have now?"
        play.start(question=question)
        assert play.say("She has 18.") == Observation(reward=1.0, done=True)
        play.start(question=question)
        told = play.say("19")
        assert [message.content[:14] for message in told.messages] == ["That is wrong."] and not told.done
        assert play.say("18") == Observation(reward=0.5, done=True)
        play.start(question=question)
        play.say("19")
        assert play.say("20") == Observation(reward=0.0, done=True)


@pytest.mark.parametrize("taskset", ["my_sums", "my_sums.py"])
def test_recipes_hold_the_hash_of_a_taskset(here: Path, taskset: str) -> None:
    config = EnvironmentConfig(name="verifiers_tasks", args={"taskset": taskset})
    before = recipe_of_environment(config)
    assert before["source"] == hashlib.sha256((here / "my_sums.py").read_bytes()).hexdigest()
    (here / "my_sums.py").write_text("", encoding="utf-8")
    assert recipe_of_environment(config)["source"] != before["source"]


@pytest.mark.needs("verifiers")
def test_a_task_that_is_graded_in_a_runtime_says_so(here: Path) -> None:
    VerifiersTasks.prepare(None, "my_boxes")
    with pytest.raises(ValueError, match="ran of the task grades within a runtime"):
        VerifiersTasks("my_boxes").start({"question": "Run it."}, 0)


def test_a_task_of_reasoning_gym_may_be_tried_again() -> None:
    entry = {"question": "Calculate 5 - 3 - 6.", "answer": "-4", "metadata": {"source_dataset": "basic_arithmetic"}}
    with played("reasoning_gym_tasks", tries=3, feedback="no, {left} left") as play:
        assert play.start(**entry) == Observation()
        assert [one.content for one in play.say("5").messages] == ["no, 2 left"]
        assert play.say("-4") == Observation(reward=1.0, done=True)
        play.start(**entry)
        assert [play.say(action).done for action in ("1", " ", "3")] == [False, False, True]
        play.start(**entry)
        assert play.say(" ").void


@pytest.mark.needs("textarena")
def test_a_game_of_textarena_tells_only_what_is_new() -> None:
    with played("textarena_games", game="GuessTheNumber-v0") as play:
        first = play.start(prompt_id="p1").messages[0].content
        assert "You are playing Guess The Number" in first
        said = [play.say(f"[{number}]") for number in (1, 20)]
        assert all(one.done or one.messages[0].content.startswith("The target number is ") for one in said)
        assert play.start(prompt_id="p1").messages[0].content == first
        ends = next(one for number in range(1, 21) if (one := play.say(f"[{number}]")).done)
        assert ends.reward is not None and ends.messages == ()
    with pytest.raises(UserError, match=r"environment\.args\.game: NoSuchGame-v0"):
        TextArenaGames.prepare(None, "NoSuchGame-v0")


@pytest.mark.parametrize(("name", "library", "args"), [
    ("verifiers_tasks", "verifiers", {"taskset": "x"}), ("textarena_games", "textarena", {"game": "x"}),
])  # fmt: skip
def test_a_library_that_is_not_installed_is_named(name: str, library: str, args: Any) -> None:
    if find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    with pytest.raises(UserError, match=f"environment: name: {name} takes the library {library}, which is not installed here"):
        check_environment(EnvironmentConfig(name=name, args=args))
