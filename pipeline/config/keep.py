"""Which checkpoints keep their weights."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.base import Model


class KeepConfig(Model):
    last: int | None = Field(default=None, ge=1)
    """The newest so many."""
    best: bool = False
    """The one with the highest held-out pass@1 so far."""
    every: int | None = Field(default=None, ge=1)
    """Those of every so many-th iteration."""

    @property
    def everything(self) -> bool:
        """Whether no rule is named: then every checkpoint keeps its weights."""
        return self.last is None and not self.best and self.every is None

    def most(self, iterations: int) -> int:
        """How many checkpoints have weights at once at most, the base model not counted: the one in the making is beside others.

        >>> [KeepConfig(last=2, best=True, every=5).most(10), KeepConfig(best=True).most(10), KeepConfig().most(10)]
        [6, 3, 10]
        """
        if self.everything:
            return iterations
        return min(iterations, (self.last or 1) + self.best + (iterations // self.every if self.every else 0) + 1)

    def __str__(self) -> str:
        """
        >>> str(KeepConfig(last=2, best=True))
        'last 2, best'
        """
        named = [f"last {self.last}"] if self.last else []
        return ", ".join([*named, *(["best"] if self.best else []), *([f"every {self.every}"] if self.every else [])])
