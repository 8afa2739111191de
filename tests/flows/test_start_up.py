"""What the command line imports: help and checks answer at once because they leave the heavy libraries alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "vllm", "transformers", "datasets", "prefect", "matplotlib"}


def imported(program: str, directory: Path) -> set[str]:
    """Top-level modules that a program has imported when it ends."""
    program += "\nimport json, sys\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=directory, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def command(*arguments: str) -> str:
    return f"""
import sys, flows.cli
sys.argv = {["rollbook", *arguments]!r}
try:
    flows.cli.main()
except SystemExit as end:
    assert end.code == 0, end.code
"""


def test_help_imports_no_heavy_library_and_no_data_frames(tmp_path: Path) -> None:
    modules = imported(command("--help"), tmp_path)
    assert "typer" in modules
    assert modules & (HEAVY | {"polars", "pyarrow", "numpy", "dataframely"}) == set()


def test_check_imports_no_heavy_library(project: Path) -> None:
    modules = imported(command("check", "run.yaml"), project)
    assert "polars" in modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    "module", ["schemas, schemas.manifest", "pipeline.config.load", "flows.answers, pipeline.run.record, flows.chain"]
)
def test_a_room_imports_no_heavy_library(module: str, tmp_path: Path) -> None:
    assert imported(f"import {module}", tmp_path) & HEAVY == set()


def test_the_configuration_imports_no_data_frames(tmp_path: Path) -> None:
    assert imported("import pipeline.config.load", tmp_path) & {"polars", "pyarrow", "numpy"} == set()


def test_the_page_of_an_audit_imports_no_library_that_draws(tmp_path: Path) -> None:
    assert imported("import pipeline.look.audit.page", tmp_path) & HEAVY == set()
