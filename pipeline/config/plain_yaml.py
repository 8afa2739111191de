"""YAML as it comes from strangers: plain values only, no tags, no aliases that unfold into more than was written."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

MOST_NODES = 100_000
"""Values and keys of a text once every alias is written out."""
CHARACTERS_PER_NODE = 100
"""A longer text counts for several values."""
MOST_CHARACTERS = 4 << 20
MERGE = "tag:yaml.org,2002:merge"
BOOL, STR = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"
"""A key is a name: `on`, as in the section tell, is no truth value."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    1e-4 is a number, as in YAML 1.2. A key that is there twice, a tag, or text that unfolds is an error.

    Raises:
        ValueError: says on one line what is wrong and where.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text):,} characters, expected at most {MOST_CHARACTERS:,}")
    try:
        return yaml.load(text, _BoundedLoader)
    except RecursionError:
        raise ValueError("too many lists or mappings inside one another") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(" ".join(filter(None, (error.context, error.problem))) + place + _remedy(text, mark)) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


UNQUOTED = re.compile(r"(\s*(?:- )?[\w.-]+:\s+)((?![\[\"'#])(?!\{(?!\w+\})).{,200}[^\s\d])\s*")
"""A line with a key and a text without quotes that is no list, mapping or number, but may begin with a {placeholder}."""


def _remedy(text: str, mark: Any) -> str:
    """The line with its text in quotes, if that is all that is wrong with it."""
    lines = text.split("\n")
    if mark is None or mark.line >= len(lines) or not (found := UNQUOTED.fullmatch(lines[mark.line])):
        return ""
    mended = found[1] + json.dumps(found[2], ensure_ascii=False)
    try:
        yaml.load("\n".join([*lines[: mark.line], mended, *lines[mark.line + 1 :]]), _BoundedLoader)
    except (yaml.YAMLError, RecursionError):
        return ""
    return f". A text like this needs quotes: {mended.strip()}"


class _BoundedLoader(yaml.SafeLoader):
    """Counts nodes as they are composed; an alias counts for all that it stands for."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._left = MOST_NODES
        self._sizes: dict[int, int] = {}
        """Nodes inside each finished one, by its identity."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, f"the tag {event.tag!r}; tags are not read", event.start_mark)
        alias, before = isinstance(event, yaml.AliasEvent), self._left
        node: Any = super().compose_node(parent, index)
        if alias and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias that stands for what it lies in", node.start_mark)
        self._left -= self._sizes[id(node)] if alias else 1 + len(node.value) // CHARACTERS_PER_NODE
        if self._left < 0:
            raise yaml.composer.ComposerError(None, None, f"unfolds into more than {MOST_NODES:,} values", node.start_mark)
        self._sizes.setdefault(id(node), before - self._left)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError) as error:  # 2024-13-45 looks like a date
            raise yaml.constructor.ConstructorError(None, None, str(error).partition(";")[0], node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is there twice", node.start_mark)
        for key, _ in node.value:
            if key.tag == BOOL:
                key.tag = STR
        return super().construct_mapping(node, deep)


_BoundedLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))
