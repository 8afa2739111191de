"""The reference pages are written from the code, and the README names what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]


def test_reference_pages_are_those_that_the_code_would_write() -> None:
    check = subprocess.run([sys.executable, "docs/make.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing


@pytest.mark.parametrize("page", [*PAGES, "Makefile", "pyproject.toml", ".ci/run"])
def test_what_make_is_told_to_make_is_there(page: str) -> None:
    there = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:`|^|^    |^# )make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= set(there)


def test_the_tree_of_the_readme_is_there() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("```")
    (lines,) = (part.strip().splitlines() for part in tree if part.strip().startswith("flows/ "))
    top, named = "", []
    for line in lines:
        name = line.split()[0]
        top = top if line.startswith("  ") else name
        named.append(name if name == top else f"{top}{name}")
    assert [path for path in named if not (ROOT / path).exists()] == []
    rooms = sorted(f"pipeline/{path.name}/" for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").exists())
    assert sorted(path for path in named if path.startswith("pipeline/") and path != "pipeline/") == rooms


def test_the_architecture_names_what_is_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:flows|pipeline|schemas|tests)/[a-z_/]*(?:\.py)?)`", page)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    code = {file: (ROOT / file).read_text(encoding="utf-8") for file in paths if file.endswith(".py")}
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \|$", page.split("## The path")[1].split("## Where")[0], re.MULTILINE)
    for functions, files in rows[2:]:
        there = "\n".join(code[file] for file in re.findall(r"`([a-z_/]+\.py)`", files))
        for name in re.findall(r"`([A-Za-z_.]+)`", functions):
            assert all(re.search(rf"(def|class) {part}\b", there) for part in name.split(".")), name


def test_a_site_on_disk_asks_the_network_for_nothing() -> None:
    """The search needs its plugin and what the theme would fetch for it, which lies beside its license."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "  - offline" in config and "font: false" in config and "use_directory_urls: false" in config
    hooks = (ROOT / "docs/site_hooks.py").read_text(encoding="utf-8")
    (file,) = re.findall(r'"(theme/[a-z-]+\.js)"', hooks)
    assert "EventTarget" in (ROOT / "docs" / file).read_text(encoding="utf-8")
    license = (ROOT / "docs" / file).with_suffix(".LICENSE.txt").read_text(encoding="utf-8")
    assert "Permission is hereby granted, free of charge" in license
