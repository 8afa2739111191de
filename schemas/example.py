"""What docstrings say of tables, the manifest and settings: tests check it, and the documentation shows it.

The docstring of a table or of the manifest ends with a worked example.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise

HEAD = "\nExample:\n"
"""What parts a docstring's description from its example."""


def description(documented: type) -> str:
    """A class's docstring without its example."""
    return inspect.cleandoc(documented.__doc__ or "").partition(HEAD)[0].strip()


def example(documented: type) -> str:
    """The text of a class's example: of a table one row as a Python dict, of the manifest its JSON.

    Raises:
        ValueError: the class's docstring has none.
    """
    text = inspect.cleandoc(documented.__doc__ or "").partition(HEAD)[2]
    if not text.strip():
        raise ValueError(f"{documented.__name__} has no example; end its docstring with 'Example:' and one row")
    return inspect.cleandoc(text)


def meanings(documented: type) -> dict[str, str]:
    """The docstring of each field of a class and of its bases, read from their source: no command pays for it at its start."""
    found: dict[str, str] = {}
    for base in reversed([base for base in documented.__mro__ if "__annotations__" in base.__dict__]):
        if base.__module__.partition(".")[0] == documented.__module__.partition(".")[0]:
            (made,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            for field, said in pairwise(made.body if isinstance(made, ast.ClassDef) else ()):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(said, ast.Expr):
                    found[field.target.id] = inspect.cleandoc(ast.literal_eval(said.value))
    return found
