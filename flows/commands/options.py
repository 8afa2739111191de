"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Config = Annotated[Path, typer.Argument(help="A run's YAML file, such as configs/demo.yaml.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: --set train.epochs=4", show_default=False)
]
IterationOption = Annotated[
    int, typer.Option("--iteration", "-i", min=0, help="Which round; earlier ones must be there or are done.")
]
Stage = Literal["generate", "evaluate", "shape", "train"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
