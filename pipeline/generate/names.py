"""Names of the groups of one artifact."""

from __future__ import annotations

from collections import Counter


class GroupNames:
    """A group's name is its prompt's id; further groups of a prompt are numbered. No name comes twice.

    >>> names = GroupNames()
    >>> [names.next(prompt_id) for prompt_id in ("q", "q", "q#1", "q")]
    ['q', 'q#1', 'q#1#1', 'q#2']
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._repeats: Counter[str] = Counter()

    def next(self, prompt_id: str) -> str:
        while (name := self._numbered(prompt_id)) in self._taken:
            self._repeats[prompt_id] += 1
        self._repeats[prompt_id] += 1
        self._taken.add(name)
        return name

    def _numbered(self, prompt_id: str) -> str:
        repeat = self._repeats[prompt_id]
        return f"{prompt_id}#{repeat}" if repeat else prompt_id
