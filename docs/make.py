"""Write the reference pages of the documentation from the declarations they describe.

python docs/make.py          writes data-format.md, configuration.md, algorithms.md, models.md, architecture.svg, and tables
python docs/make.py --check  ends with status 1 if one of them is not what would be written
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from draw import architecture
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pipeline.algorithms import ALGORITHMS, settings_of
from pipeline.algorithms.algorithm import Algorithm, cells_of
from pipeline.algorithms.settings import MODIFIERS
from pipeline.config.reward_model import RewardModelConfig
from pipeline.config.run import RunConfig
from pipeline.rewards.graders.measured import measured, weaknesses
from schemas import TABLES
from schemas.example import description, example, meanings
from schemas.manifest import Content, File, Manifest, Parent, Provenance
from schemas.table import Table

DOCS = Path(__file__).parent
DEAD = {
    (): "nothing is left out",
    ("advantage",): "completions with advantage 0",
    ("weight",): "completions with weight 0",
    ("advantage", "weight"): "completions with advantage 0 or weight 0",
    ("pairs",): "completions in no pair",
}
BEGIN, END = "<!-- data sets: written by docs/make.py -->", "<!-- end of data sets -->"
NOTE = "<!-- Written by docs/make.py from the code. Edit there, then run `python docs/make.py`. -->\n"


def data_format() -> str:
    parts = [NOTE, (DOCS / "parts" / "data-format.md").read_text(encoding="utf-8")]
    parts.append("## Tables\n\nEvery Parquet file carries these descriptions in its schema's metadata.\n")
    parts += [_table(table) for table in TABLES.values()]
    parts.append("## The manifest\n\n`manifest.json` is written last; an artifact exists exactly when it does.\n")
    for model in (Manifest, Content, Parent, File, Provenance):
        parts.append(f"### {model.__name__}\n\n{_paragraphs(description(model))}\n\n{_fields(model)}")
    parts.append(f"### A manifest\n\n```json\n{example(Manifest)}\n```\n")
    return "\n".join(parts)


def configuration() -> str:
    parts = [NOTE, (DOCS / "parts" / "configuration.md").read_text(encoding="utf-8")]
    for path, model in _sections(RunConfig, ""):
        title = f"`{path}`" if path else "Top level"
        parts.append(f"## {title}\n\n{_fields(model)}")
    return "\n".join(parts)


def reward_models() -> str:
    parts = [NOTE, (DOCS / "parts" / "reward-models.md").read_text(encoding="utf-8"), "## Settings\n"]
    parts += [
        f"### `{path or 'Top level'}`\n\n{_fields(model)}" for path, model in _sections(RewardModelConfig, "") if path != "model"
    ]
    return "\n".join(parts)


def models() -> str:
    """The page on model families, from what `benchmarks/families.py` found."""
    kept = json.loads((DOCS.parent / "benchmarks" / "results" / "families.json").read_text(encoding="utf-8"))
    text = (DOCS / "parts" / "models.md").read_text(encoding="utf-8").format(**kept["tokens"])
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    rows = [
        f"| {name} | {_trained(record['fits'])} | {_trained(record['longer'])} | {_served(record.get('engine'))} |"
        for name, record in kept["families"].items()
        if "fits" in record
    ]
    table = "\n".join(["| family | fits | longer | vLLM, before and after |", "|---|---|---|---|", *rows])
    where = f"Written by `{kept['command']}` on {kept['date']} ({versions}; {kept['machine']}): "
    where += "[families.json](../benchmarks/results/families.json)."
    return f"{NOTE}\n{text}\n{table}\n\n{where}\n"


def _trained(record: dict[str, Any]) -> str:
    if "refused" in record:
        return f"**refused**: {_cell(record['refused'])}"
    how = f"one a row, {record['own']}" if record["attention"] == "alone" else f"packed, {record['attention']}"
    return f"{how} ({record['difference']:.0e})"


def _served(record: dict[str, Any] | None) -> str:
    if record is None:
        return "not run"
    if "refused" in record:
        return f"**no**: {_cell(record['refused'])}"
    return f"yes ({record['vllm_max']:.0e}, {record['reloaded_max']:.0e})"


def _cell(reason: str) -> str:
    """A reason, short enough for a table."""
    text = reason.removeprefix("UserError: ").replace("|", "\\|").replace("MODEL ", "it: ", 1)
    return text if len(text) <= 110 else f"{text[:107]}…"


def algorithms() -> str:
    examples = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS.parent / "examples").glob("own_*.py")}
    text = (DOCS / "parts" / "algorithms.md").read_text(encoding="utf-8")
    for name, source in examples.items():
        text = text.replace(f"{{{name}}}", source)
    parts = [NOTE, text, _modifiers(), "## All algorithms\n"]
    parts.append("| name | loss | needs | source |\n|---|---|---|---|")
    for algorithm in ALGORITHMS.values():
        needs = ", ".join(f"`{need}`" for need in algorithm.needs) or "rewards"
        parts.append(
            f"| [`{algorithm.name}`](#{_anchor(algorithm)}) | `{_cell(algorithm.formula)}` | {needs} | {algorithm.paper} |"
        )
    parts.append("")
    parts += [_algorithm(algorithm) for algorithm in ALGORITHMS.values()]
    return "\n".join(parts)


def grading() -> str:
    """The page as it is, with the table of reasoning-gym's data sets written anew."""
    text = (DOCS / "grading.md").read_text(encoding="utf-8")
    head, found, rest = text.partition(BEGIN)
    if not found:
        raise SystemExit(f"docs/grading.md: has no line {BEGIN!r}, after which the table of data sets is written")
    return head + BEGIN + _data_sets() + END + rest.partition(END)[2]


def _data_sets() -> str:
    about = measured()
    header = "| data set | own answer | another's | empty | words | in a sentence | best constant | right for | weak because |"
    lines = [
        f"\n\nMeasured with reasoning-gym {about['library']} by `{about['command']}`:",
        f"mean scores of {about['items']} items (4 of slow ones) with the default configuration and seed {about['seed']}.\n",
        header,
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in about["datasets"].items():
        figures = (row[key] for key in ("oracle", "wrong", "empty", "words", "sentence", "constant", "constant_right"))
        weak = "; ".join(_cell(reason) for reason in weaknesses(name))
        lines.append(f"| `{name}` | {' | '.join('' if value is None else f'{value:.2f}' for value in figures)} | {weak} |")
    return "\n".join(lines) + "\n\n"


def _table(table: type[Table]) -> str:
    rows = ["| column | type | may be null | unit | meaning |", "|---|---|---|---|---|"]
    for field in table.arrow_schema():
        metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        null = "yes" if field.nullable else ""
        kind = str(field.type).replace("list<item: ", "list<").replace("list<element: ", "list<")
        rows.append(f"| `{field.name}` | {kind} | {null} | {metadata.get('unit', '')} | {_cell(metadata['description'])} |")
    extra = (
        f"\n\nColumns that start with {', '.join(f'`{prefix}`' for prefix in table.extra_prefixes)} may follow."
        if (table.extra_prefixes)
        else ""
    )
    rules = [name for name in table._validation_rules(with_cast=False) if "|" not in name and name != "primary_key"]
    listed = "".join(f"\n- {rule.replace('_', ' ')}" for rule in rules)
    key = ", ".join(f"`{name}`" for name in table.primary_key())
    stated = f"\n\nRules:\n{listed}" if rules else ""
    row = f"\n\nA row:\n\n```python\n{example(table)}\n```"
    head = f"### {table.title()}, version {table.version}\n\n{_paragraphs(description(table))} Key: {key}.\n\n"
    return head + "\n".join(rows) + extra + stated + row + "\n"


def _paragraphs(text: str) -> str:
    """A docstring's paragraphs, one a line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        for nested in _models_in(field.annotation):
            yield from _sections(nested, f"{path}.{name}".lstrip("."))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _fields(model: type[BaseModel]) -> str:
    rows, said = ["| key | type | default | meaning |", "|---|---|---|---|"], meanings(model)
    for name, field in model.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"`{_default(field.default)}`"
        if field.default_factory is not None:
            default = ""
        shown = field.alias or name
        rows.append(f"| `{shown}` | {_cell(_type(field.annotation))} | {default} | {_cell(said.get(name, ''))} |")
    return "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    return "see below" if isinstance(value, BaseModel) else str(value)


def _type(annotation: Any) -> str:
    text = getattr(annotation, "__name__", None) if not get_args(annotation) else None
    shown = text or str(annotation)
    return re.sub(r"\b(typing|pipeline\.config(_\w+)?|schemas\.manifest)\.", "", shown)


def _modifiers() -> str:
    """Cells that can be set in any policy gradient."""
    lines = [
        "## Modifiers",
        "",
        "These go with any policy gradient. `train.algorithm_args: {mismatch: TruncatedImportance, mismatch.high: 3.0}` corrects",
        "for the mismatch of engine and trainer, `{regularizers: [EntropyBonus, ForwardKL], regularizers.0.coefficient: 0.01}`",
        "puts penalties in place of the algorithm's own. A correction changes what ratios are taken against, so it is never",
        "applied twice. In `rollbook compare`: `--algorithms grpo,grpo:mismatch=MaskedImportance,mismatch.level=sequence`.",
        "",
        "| in | cell | what it does | settings |",
        "|---|---|---|---|",
    ]
    for slot, cells in MODIFIERS.items():
        for cell in cells:
            settings = ", ".join(f"`{field.name}={field.default}`" for field in dataclasses.fields(cell))
            lines.append(f"| `{slot}` | `{cell.__name__}` | {_cell(cell.__doc__ or '')} | {settings} |")
    return "\n".join(lines) + "\n"


def _algorithm(algorithm: Algorithm) -> str:
    cells: dict[str, list[str]] = {}
    for slot, _, cell in cells_of(algorithm):
        doc = " ".join((type(cell).__doc__ or "").split())
        cells.setdefault(slot, []).append(f"`{type(cell).__name__}`: {doc}")
    lines = [f"- {slot}: {'; '.join(shown)}" for slot, shown in cells.items()]
    settings = [f"`{cell}.{name}={value}`" for cell, name, value in settings_of(algorithm)]
    return (
        f"### {algorithm.name}\n\n{algorithm.summary}\n\n    {algorithm.formula}\n\n" + "\n".join(lines)
        + f"\n\nSettings: {', '.join(settings) or 'none'}.\n\nNot computed: {DEAD[algorithm.dead_at]}.\n"
    )  # fmt: skip


def _anchor(algorithm: Algorithm) -> str:
    return "".join(character for character in algorithm.name if character.isalnum() or character in "-_")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {
    "data-format.md": data_format,
    "configuration.md": configuration,
    "algorithms.md": algorithms,
    "models.md": models,
    "reward-models.md": reward_models,
    "architecture.svg": architecture,
    "grading.md": grading,
}


def main() -> None:
    stale = [name for name, write in PAGES.items() if not (DOCS / name).exists() or (DOCS / name).read_text("utf-8") != write()]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}. Run `python docs/make.py`")
        return
    for name in stale:
        (DOCS / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
