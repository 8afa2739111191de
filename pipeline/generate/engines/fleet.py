"""Several engines as one: whole groups go to the engine that has least to do, and one that dies is replaced.

What each of them is at work on is remembered until it is answered. So nothing is lost with an engine, and nothing is drawn
twice: others do what it did not finish, from the same seeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from pipeline.common.errors import StageFailed, UserError
from pipeline.config.engine import EngineConfig
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.engines.hands import Hands
from pipeline.generate.engines.member import Bundle, Member, Said
from pipeline.generate.mixture.folder import MixedWith
from pipeline.run.process import Reporter, own_log

_DRY = Bundle({})
"""In place of a bundle: there will be no more."""
TRIES = 3
"""How many engines may die with the same completions in hand, or at their start, before that is told."""


class Fleet:
    """Engines with the weights of one checkpoint at a time."""

    def __init__(
        self,
        model: Path,
        config: EngineConfig,
        dtype: str,
        *,
        trust_remote_code: bool,
        reporter: Reporter,
        hands: Hands,
        mixed: MixedWith | None = None,
    ) -> None:
        """Start them, and wait until as many as it takes have the checkpoint.

        Args:
            hands: where their processes come from.
            mixed: the model that the checkpoint is mixed with.

        Raises:
            UserError: vLLM does not support or cannot load the model, or there are not as many devices.
            StageFailed: an engine died.
        """
        self._load = {
            "config": config.model_dump(mode="json"),
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "mixture": asdict(mixed) if mixed else None,
        }
        self._hands = hands
        self._most = config.max_num_seqs
        self._said: SimpleQueue[tuple[Member | None, Said]] = SimpleQueue()
        self._unfinished: deque[Bundle] = deque()
        self._model, self._reporter = model, reporter
        self.members = [self._started(number) for number in range(hands.count)]
        self._await()
        self.name = next(member.name for member in self.members if member.is_ready)

    def _started(self, number: int) -> Member:
        member = Member(number, self._hands.process(number), self._said)
        member.have({"load": {**self._load, "model": str(self._model)}})
        return member

    def begin(self, reporter: Reporter) -> None:
        """Tell another caller from now on, and drop cached prompts: what is generated depends on nothing generated before."""
        self._reporter, log = reporter, own_log()
        for member in self.members:
            member.logs_to(log)
            member.tell({"forget": True})
            member.tokens = 0
        self._await()

    def reload(self, model: Path) -> None:
        """Take the weights of another checkpoint of the same architecture.

        Whether they really arrived depends on vLLM and the device: `pipeline.generate.live` checks it.

        Raises:
            StageFailed: vLLM cannot.
        """
        self._await()
        self._model = model
        for member in self.members:
            member.have({"reload": str(model)})
            member.tell({"forget": True})
        self._await()

    def end(self) -> None:
        """Make sure that every engine is gone, and with it the memory that it held."""
        for member in self.members:
            member.end()

    @property
    def tokens(self) -> list[int]:
        """What each engine generated since `begin`."""
        return [member.tokens for member in self.members]

    def run(self, asks: Iterator[Sequence[CompletionRequest]], in_flight: int) -> Iterator[Sequence[Reply]]:
        """Generate completions, at most about `in_flight` at once by each engine, and yield them as they finish.

        The order and the batch they are in depend on timing; the completions do not, each has a seed of its own.

        Args:
            asks: requests of one group together, which are of one prompt; an empty one says that there is nothing now, and may
                be later: see `wake`.

        Raises:
            UserError: vLLM can load the model, but not run it.
            StageFailed: engines die, whatever takes their place.
        """
        yield from self._work(self.members, self._bundles(asks), in_flight)

    def answers_of_each(self, asks: Sequence[CompletionRequest]) -> list[list[Reply]]:
        """What each engine says to the same requests."""
        steps = [self._work([member], self._bundles([ask] for ask in asks), len(asks)) for member in self.members]
        return [[reply for step in answers for reply in step] for answers in steps]

    def wake(self) -> None:
        """There may be more requests now. From any thread."""
        self._said.put((None, []))

    def _bundles(self, asks: Iterable[Sequence[CompletionRequest]]) -> Iterator[Bundle | None]:
        """Requests of one group together, as far as an engine runs so many at once: its prompt is then read once."""
        for several in asks:
            if not several:
                yield None
            for start in range(0, len(several), self._most):
                yield Bundle({ask.key: ask for ask in several[start : start + self._most]})

    def _work(self, members: list[Member], fresh: Iterator[Bundle | None], in_flight: int) -> Iterator[Sequence[Reply]]:
        is_dry = False
        while True:
            while free := [member for member in members if member.is_ready and len(member.pending) < in_flight]:
                bundle = self._unfinished.popleft() if self._unfinished else next(fresh, _DRY)
                is_dry = bundle is _DRY
                if is_dry or bundle is None:
                    break
                min(free, key=lambda member: len(member.pending)).give(bundle)
            if is_dry and not self._unfinished and not any(member.pending for member in members):
                return
            member, said = self._said.get()
            if replies := self._heard(member, said):
                yield replies

    def _await(self) -> None:
        """
        Raises:
            UserError, StageFailed: the last word of one that ended.
        """
        while sum(member.is_ready for member in self.members) < self._hands.needed:
            member, said = self._said.get()
            if isinstance(said, UserError) and member in self.members and self._hands.needed == len(self.members):
                raise said
            self._heard(member, said)

    def _heard(self, member: Member | None, said: Said) -> Sequence[Reply]:
        """Take what an engine says. Returns the completions in it."""
        if member is None or member not in self.members:  # a call to wake up; its last words, after it was replaced
            return []
        match said:
            case list():
                return member.answered(said)
            case StageFailed():
                self._replace(member, said)
            case UserError():
                raise said
            case {"event": "waits_for_room"}:
                member.waits_for_room = True
                if all(one.waits_for_room for one in self.members):
                    raise StageFailed(said["message"])
            case _:
                member.heard_ready(said["name"])
        return []

    def _replace(self, member: Member, why: StageFailed) -> None:
        """Have another engine in the place of one that died, and what it did not finish done."""
        bundles = member.unfinished()
        for bundle in bundles:
            bundle.deaths += 1
        member.end()
        deaths = member.deaths + 1
        if deaths >= TRIES or any(bundle.deaths >= TRIES for bundle in bundles):
            raise why
        self._unfinished.extendleft(reversed(bundles))
        first = str(why).partition(". ")[0].removeprefix("pipeline.generate.engines ")
        self._reporter.note(f"engine {member.number + 1}: {first}; another takes its place")
        self.members[member.number] = self._started(member.number)
        self.members[member.number].deaths = deaths
