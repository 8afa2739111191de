"""What vLLM is given to load in place of a checkpoint: the policy's own files, under a config that names the other model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURE = "RollbookMixture"
"""What vLLM knows the class by."""
PARTS = "rollbook_mixture"
"""Key of the config under which the class finds its parts."""


@dataclass(frozen=True)
class MixedWith:
    """The other model of a mixture, and its share: π' ∝ π^(1 - share) · other^share."""

    other: str
    """Directory of the checkpoint."""
    share: float

    @property
    def words(self) -> str:
        """
        >>> MixedWith("artifacts/checkpoint/5f0c", 0.125).words
        'mixed by 0.125'
        """
        return f"mixed by {self.share:g}"


def mixture_folder(policy: Path, mixed: MixedWith, folder: Path) -> Path:
    """Make the directory: links to the policy's files, and its config with another architecture."""
    folder.mkdir()
    for file in policy.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    config: dict[str, Any] = json.loads((policy / "config.json").read_text(encoding="utf-8"))
    parts = {"architectures": config["architectures"], "other": str(Path(mixed.other).resolve()), "share": mixed.share}
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [ARCHITECTURE], PARTS: parts}), encoding="utf-8")
    return folder
