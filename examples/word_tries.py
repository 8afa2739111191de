"""A taskset of the library verifiers, with an environment of its own: a word problem, and a second try for who got it wrong.

pip install 'rollbook[verifiers]', then: rollbook run configs/tries.yaml
"""

import json
import re
from pathlib import Path

import verifiers.v1 as vf


class WordData(vf.TaskData):
    answer: str


class WordTask(vf.Task[WordData, vf.State, vf.TaskConfig]):
    """Right at once earns 1, right at a later try half of it."""

    def is_right(self, reply: str) -> bool:
        """Whether the last number of a reply is the answer."""
        numbers = re.findall(r"-?\d+", reply.replace(",", ""))
        return bool(numbers) and int(numbers[-1]) == int(self.data.answer)

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return self.is_right(trace.last_reply) / (1 if trace.num_turns == 1 else 2)


class WordConfig(vf.TasksetConfig):
    files: list[str] = ["data/words/train.jsonl", "data/words/heldout.jsonl"]


class Words(vf.Taskset[WordTask, WordConfig]):
    def load(self):
        for file in self.config.files:
            for line in Path(file).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                yield WordTask(WordData(prompt=row["question"], answer=row["answer"]), self.config.task)


class TriesConfig(vf.EnvConfig):
    solver: vf.AgentConfig = vf.AgentConfig()
    tries: int = 2


class Tries(vf.Env[TriesConfig]):
    """Who got it wrong is told so, and tries again."""

    async def run(self, task, agents):
        async with agents.solver.interaction(task) as solver:
            reply = await solver.turn()
            for _ in range(1, self.config.tries):
                if task.is_right(reply.last_reply):
                    break
                reply = await solver.turn("That is wrong. Try again, and answer with the number only.")


__all__ = ["Tries", "Words"]
