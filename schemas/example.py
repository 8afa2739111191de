"""Worked examples: the docstring of a table or of the manifest ends with one, which tests check and the documentation shows."""

from __future__ import annotations

import inspect

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
