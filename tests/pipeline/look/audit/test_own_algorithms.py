"""Algorithms of plugins and of installed packages: an audit names them, and imports neither."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.look.audit.audit import audit
from schemas.manifest import UNSEALED, sealed

CODE = "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\nMINE = None\n"


def rename_algorithm(run: Path, name: str, plugins: list[str]) -> None:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["config"]["train"]["algorithm"] = name
    record["config"]["plugins"] = plugins
    (run / "run.json").write_text(sealed(json.dumps(record | {"seal": UNSEALED}, indent=2) + "\n"), encoding="utf-8")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an algorithm called mine is installed; importing it leaves a file."""
    (tmp_path / "site" / "mine-1.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (tmp_path / "site" / "mine-1.dist-info" / "entry_points.txt").write_text("[rollbook.algorithms]\nmine = mine:MINE\n")
    (tmp_path / "site" / "mine.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return tmp_path / "site"


def test_an_algorithm_of_an_installed_package_is_not_imported(copied: Any, package: Path) -> None:
    rename_algorithm(copied.run, "mine", [])
    found = audit(copied.run, deep=True, samples=2, steps=1)
    (note,) = [finding for finding in found.findings if finding.check == "algorithm"]
    assert (found.status, note.severity) == (0, "note") and "mine is an algorithm of a plugin or a package" in note.found
    assert "mine" not in sys.modules and not (package / "imported").exists()


def test_a_plugin_is_not_run_and_hides_no_setting_of_a_built_in_algorithm(copied: Any, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(CODE, encoding="utf-8")
    rename_algorithm(copied.run, "mine", [str(plugin)])
    assert audit(copied.run).status == 0
    rename_algorithm(copied.run, "grpo", [str(plugin)])
    found = audit(copied.run)
    assert found.status == 1 and any(finding.check == "recipe" for finding in found.findings)
    assert not (tmp_path / "imported").exists()


def test_an_algorithm_that_nobody_knows_cannot_be_checked(copied: Any) -> None:
    rename_algorithm(copied.run, "nobody-knows-it", [])
    found = audit(copied.run)
    assert (found.status, [f.check for f in found.findings if f.severity == "unknown"]) == (2, ["config"])
