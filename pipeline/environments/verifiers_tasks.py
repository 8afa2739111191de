"""`verifiers_tasks`: tasks and environments of the library verifiers, from 0.4 on.

The policy takes the seat of an environment's one agent: what the environment sends to it is observed, what the policy says is the
agent's reply, and the task's rewards are those of the episode. No model is asked over HTTP, and no harness is started: tasks that
need a container, a program of their own or tool servers are refused.

    python -m pipeline.environments.verifiers_tasks my_tasks --limit 1000 > tasks.jsonl

writes the tasks of a taskset as data: one prompt a line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import inspect
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, ClassVar

from pipeline.common.errors import UserError

NAME = "verifiers_tasks"


class VerifiersTasks:
    """Environment of one episode."""

    library: ClassVar[str] = "verifiers"
    _loaded: ClassVar[tuple[Any, dict[str, Any]] | None] = None
    """The library's environment, and its tasks by what they ask."""

    def __init__(self, taskset: str, config: Mapping[str, Any] | None = None, limit: int = 1000) -> None:
        """
        Args:
            taskset: name of a module that exports a Taskset and, if it has one of its own, an Env; or its file (.py).
            config: of the library's environment, such as {"taskset": {"task": {…}}}.
            limit: tasks that are loaded.
        """
        assert self._loaded is not None
        self._env, self._tasks = self._loaded
        self._loop = asyncio.new_event_loop()

    @classmethod
    def prepare(cls, model: str | None, taskset: str, config: Mapping[str, Any] | None = None, limit: int = 1000) -> None:
        """Load the tasks, once for all episodes."""
        env = loaded(taskset, config or {})
        cls._loaded = env, {asked(task.data): task for task in itertools.islice(env.taskset, limit)}

    @classmethod
    def source(cls, taskset: str, config: Mapping[str, Any] | None = None, limit: int = 1000) -> str | None:
        """sha256 of what the taskset is written in: another one gives other episodes. None where it cannot be found."""
        files = _files_of(taskset)
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest() if files else None

    def start(self, prompt: Mapping[str, Any], seed: int) -> str | None:
        task = self._tasks.get(str(prompt["question"]))
        if task is None:
            raise ValueError(f"no task of the taskset asks this: {str(prompt['question'])[:80]!r}")
        _refuse_unplayable(task)
        self._seat = _PolicySeat(task)
        self._run = self._loop.create_task(self._episode(task))
        observation, _ = self._heard()
        return observation

    def step(self, action: str) -> tuple[str | None, float | None, bool, dict[str, Any]]:
        self._seat.replies.put_nowait(action)
        observation, done = self._heard()
        reward = float(self._seat.trace.reward) if done else None
        return observation, reward, done, {}

    def _heard(self) -> tuple[str | None, bool]:
        """What is said to the policy next, and whether the episode is over."""
        return self._loop.run_until_complete(self._next())

    async def _next(self) -> tuple[str | None, bool]:
        said = asyncio.ensure_future(self._seat.said.get())
        await asyncio.wait({said, self._run}, return_when=asyncio.FIRST_COMPLETED)
        if said.done():
            return said.result(), False
        said.cancel()
        self._run.result()
        return None, True

    async def _episode(self, task: Any) -> None:
        from verifiers.v1 import EnvInfo, Episode

        agents = _PolicySeats(self._env, self._seat)
        await self._env.setup(agents)
        await self._env.run(task, agents)
        episode = Episode(env=EnvInfo(id=self._env.config.env_id), task=self._seat.trace.task, traces=[self._seat.trace])
        await self._env.finalize(task, episode)


class _PolicySeats:
    """The agents of an environment: the policy sits where its config has one."""

    def __init__(self, env: Any, seat: _PolicySeat) -> None:
        from verifiers.v1.configs.agent import agent_config_fields

        (self._name,) = agent_config_fields(env.config)
        self._seat = seat

    def __getattr__(self, name: str) -> _PolicySeat:
        if name.startswith("_") or name != self._name:
            raise AttributeError(name)
        return self._seat


class _PolicySeat:
    """An agent whose replies come from outside, as `Env.run` uses one."""

    def __init__(self, task: Any) -> None:
        self.trace = _trace(task)
        self.said: asyncio.Queue[str | None] = asyncio.Queue()
        self.replies: asyncio.Queue[str] = asyncio.Queue()
        self._hooks = task.hooks("stop")

    async def run(self, task: Any) -> Any:
        """One reply to the task's own prompt."""
        async with self.interaction(task) as interaction:
            await interaction.turn()
        return self.trace

    @contextlib.asynccontextmanager
    async def interaction(self, task: Any) -> AsyncIterator[_PolicySeat]:
        await task.setup(self.trace, None)
        yield self
        self.trace.is_completed = self.trace.ok = True
        await task.finalize(self.trace, None)
        await task.score(self.trace, None)

    async def turn(self, message: str | None = None) -> Any:
        """Say something to the policy, and hear its reply."""
        from verifiers.v1 import Segment
        from verifiers.v1.types import AssistantMessage, UserMessage

        if self.trace.stop_condition is not None:
            return Segment(messages=[], terminated=True)
        if message is not None:
            _add(self.trace, UserMessage(content=message))
        self.said.put_nowait(message)
        reply = AssistantMessage(content=await self.replies.get())
        _add(self.trace, reply, sampled=True)
        for hook in self._hooks:
            if await _called(hook, self.trace):
                self.trace.stop(hook.__name__)
        return Segment(messages=[reply])


async def _called(hook: Any, trace: Any) -> Any:
    from verifiers.v1 import Trace
    from verifiers.v1.session import call_hook

    return await call_hook(hook, {"task": trace.task.data, "trace": trace, Trace: trace})


def loaded(taskset: str, config: Mapping[str, Any]) -> Any:
    """The library's environment of a taskset.

    Raises:
        UserError: the library is not there, or there is no such taskset, or none that can be played here.
    """
    name = _on_path(taskset)
    try:
        from verifiers.v1.configs.agent import agent_config_fields
        from verifiers.v1.utils.loaders import load_environment, resolve_env_config
    except ImportError as error:
        raise UserError(
            f"environment.name: {NAME} takes the library verifiers, 0.4 or later ({error}): pip install 'rollbook[verifiers]'"
        ) from None
    given = {**config, "taskset": {**config.get("taskset", {}), "id": name}}
    try:
        env = load_environment(resolve_env_config(given))
    except Exception as error:
        raise UserError(f"environment.args.taskset: {taskset}: {type(error).__name__}: {error}") from None
    names = list(agent_config_fields(env.config))
    if len(names) != 1:
        raise UserError(f"environment.args.taskset: {taskset} seats {len(names)} agents ({', '.join(names)}); expected one")
    kind = type(env.taskset).task_type()
    if kind.NEEDS_CONTAINER:
        raise UserError(f"environment.args.taskset: {taskset}: its tasks need a container, and none is started here")
    if type(env.taskset).toolsets(env.taskset.config) or kind.toolsets(env.taskset.config.task):
        raise UserError(f"environment.args.taskset: {taskset}: has tool servers, and none is started here")
    return env


def _on_path(taskset: str) -> str:
    """Have the module of a taskset be found. Returns its name.

    Raises:
        UserError: there is no such file.
    """
    sys.path.insert(0, os.getcwd())
    if not taskset.endswith(".py"):
        return taskset
    file = Path(taskset)
    if not file.is_file():
        raise UserError(f"environment.args.taskset: {taskset}: no such file in {os.getcwd()}")
    sys.path.insert(0, str(file.resolve().parent))
    return file.stem


def _files_of(taskset: str) -> list[Path]:
    """The file of a taskset's module; of a package all that are Python's; [] where there is none."""
    if taskset.endswith(".py"):
        return [Path(taskset)] if Path(taskset).is_file() else []
    name = taskset.rpartition("/")[2].partition("@")[0].replace("-", "_").lower()
    spec = PathFinder.find_spec(name, [os.getcwd(), *sys.path])
    if spec is None or spec.origin is None:
        return []
    file = Path(spec.origin)
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def _refuse_unplayable(task: Any) -> None:
    for hook in (*task.hooks("reward"), *task.hooks("metric")):
        runtime = inspect.signature(hook).parameters.get("runtime")
        if runtime is not None and runtime.default is runtime.empty:
            raise ValueError(f"{hook.__name__} of the task grades within a runtime, and none is started here")


def asked(data: Any) -> str:
    """What a task asks, by which its prompt is known again: the last message of its prompt, or its name where it has none."""
    if isinstance(data.prompt, str):
        return data.prompt
    texts = [message.content for message in data.prompt or () if isinstance(message.content, str)]
    return str(texts[-1]) if texts else str(data.name or data.id or f"task {data.idx}")


def rows(env: Any, limit: int) -> Iterator[dict[str, Any]]:
    """Tasks as lines of data: a name and a question, as messages where the task has a system prompt or several of its own.

    The answer is the task's, if it has a field of that name; else its name stands there, since its rewards know the answer.
    """
    for task in itertools.islice(env.taskset, limit):
        data = task.data
        messages = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        if isinstance(data.prompt, str) or data.prompt is None:
            messages.append({"role": "user", "content": asked(data)})
        else:
            messages += [{"role": one.role, "content": one.content} for one in data.prompt]
        question = messages if len(messages) > 1 else messages[0]["content"]
        name = str(data.name or data.id or data.idx)
        yield {"id": name, "question": question, "answer": str(getattr(data, "answer", None) or name)}


def _trace(task: Any) -> Any:
    from verifiers.v1 import AgentConfig, AgentInfo, Trace, TraceTask
    from verifiers.v1.state import state_cls
    from verifiers.v1.types import SystemMessage, UserMessage

    told = TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    trace = Trace(task=told, state=state_cls(type(task))(), agent=AgentInfo(config=AgentConfig()))
    if task.data.system_prompt:
        _add(trace, SystemMessage(content=task.data.system_prompt))
    prompt = task.data.prompt
    for message in [UserMessage(content=prompt)] if isinstance(prompt, str) else prompt or ():
        _add(trace, message)
    return trace


def _add(trace: Any, message: Any, *, sampled: bool = False) -> None:
    from verifiers.v1 import MessageNode

    trace.nodes.append(MessageNode(parent=len(trace.nodes) - 1 if trace.nodes else None, message=message, sampled=sampled))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tasks of a taskset of verifiers as JSON lines.")
    parser.add_argument("taskset")
    parser.add_argument("--config", default="{}", help="of the library's environment, as JSON")
    parser.add_argument("--limit", type=int, default=1000)
    given = parser.parse_args()
    try:
        for row in rows(loaded(given.taskset, json.loads(given.config)), given.limit):
            print(json.dumps(row, ensure_ascii=False))
    except UserError as error:
        sys.exit(f"rollbook: {error}")


if __name__ == "__main__":
    main()
