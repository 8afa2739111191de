"""What a training learns from: one or several rollouts artifacts, each with what shaping made of it and its cached scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.store import Artifact
from pipeline.store.store import verified


@dataclass(frozen=True)
class Part:
    """One rollouts artifact as a training sees it. No tokens are copied: the shaped table says which of its rows count."""

    rollouts: Artifact
    shaped: Artifact
    scores: Mapping[str, Artifact] = field(default_factory=dict)
    """Cached logprobs by role, reference or proximal, for algorithms that need them."""

    @property
    def is_drawn(self) -> bool:
        """Whether some of its groups were left out for this training."""
        return any(parent.role == "shaped" for parent in self.shaped.manifest.content.parents)

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """By role."""
        return {"rollouts": self.rollouts, "shaped": self.shaped, **dict(sorted(self.scores.items()))}

    def to_json(self) -> dict[str, Any]:
        """Where its artifacts lie, for the spec of a stage."""
        scores = {role: str(artifact.path) for role, artifact in self.scores.items()}
        return {"rollouts": str(self.rollouts.path), "shaped": str(self.shaped.path), "scores": scores}

    @classmethod
    def opened(cls, places: Mapping[str, Any]) -> Part:
        """From `to_json`, with every byte compared with the manifests."""
        scores = {role: verified(path) for role, path in places["scores"].items()}
        return cls(verified(places["rollouts"]), verified(places["shaped"]), scores)
