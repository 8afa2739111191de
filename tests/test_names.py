"""One name, one thing."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "pipeline", "schemas")
WELL_KNOWN = {
    *("anthropic", "attr", "boto3", "cv2", "deepspeed", "dotenv", "gym", "httpx", "joblib", "keras", "lightning"),
    *("litellm", "mlflow", "msgspec", "nemo_rl", "nltk", "open_instruct", "openai", "openrlhf", "OpenSSL", "PIL", "plotly"),
    *(
        "psutil",
        "ray",
        "redis",
        "regex",
        "requests",
        "scipy",
        "seaborn",
        "sglang",
        "sklearn",
        "slime",
        "spacy",
        "sympy",
        "tinker",
    ),
    *("tqdm", "triton", "trl", "uvicorn", "verifiers", "verl", "xformers", "yaml"),
}
"""Import names of packages that a reader knows, beside those that this one depends on."""


def _files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def test_no_two_classes_have_the_same_name() -> None:
    """A leading underscore makes no difference: who searches for a name finds one thing."""
    found = defaultdict(list)
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name.lstrip("_")].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_no_module_is_named_as_one_of_the_standard_library_or_of_a_known_package() -> None:
    theirs = sys.stdlib_module_names | WELL_KNOWN | _dependencies()
    ours = {path for file in _files() for path in (file.with_suffix(""), file.parent)}
    assert sorted(str(path.relative_to(ROOT)) for path in ours if path.name in theirs) == []


def _dependencies() -> set[str]:
    """Packages that pyproject.toml names, spelled as modules."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    return {re.split(r"[^\w-]", line)[0].replace("-", "_").lower() for line in listed}


def test_no_message_shows_a_call_where_its_value_should_be() -> None:
    """A part of an f-string without its own f, where a message is written over several lines."""
    calls = re.compile(r"\{[a-z_]+\(.*\)\}")
    for file in _files():
        for text in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = text.values if isinstance(text, ast.JoinedStr) else ()
            shown = [part.value for part in parts if isinstance(part, ast.Constant) and calls.search(str(part.value))]
            assert shown == [], file
