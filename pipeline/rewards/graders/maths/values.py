"""One value of one kind from a text that holds nothing but an answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from collections.abc import Sequence as Several
from fractions import Fraction

from pipeline.rewards.graders.maths.evaluate import exactly
from pipeline.rewards.graders.maths.expressions import FUNCTIONS, SHORT_WORDS, SYMBOLS, parse
from pipeline.rewards.graders.maths.nodes import (
    Assigned,
    Based,
    Interval,
    Matrix,
    Node,
    Quantity,
    RatioNode,
    Relation,
    Sequence,
    Union,
    Unit,
    Unreadable,
    Value,
    Words,
    number,
)
from pipeline.rewards.graders.maths.spelled import spelled_number
from pipeline.rewards.graders.maths.tidy import ROW, TEXT_CLOSE, TEXT_OPEN, tidy, with_thousands
from pipeline.rewards.graders.maths.tokens import Token, tokens_of
from pipeline.rewards.graders.maths.units import LETTERS, NOUNS, SCALES, UNSPACED, is_unit_text, unit_of

LONGEST = 800
"""Characters of an answer that is read; a longer one is compared as a text."""
MOST_ITEMS = 100
MOST_RELATIONS = 10

_OPEN, _CLOSE = ("(", "[", "{", r"\{", r"\lfloor", r"\lceil"), (")", "]", "}", r"\}", r"\rfloor", r"\rceil")
_RELATIONS = {"=": "=", "<": "<", ">": ">", r"\le": "≤", r"\ge": "≥", r"\ne": "≠"}
_CURRENCY = ("$", "€", "£", "¥", "₹", "¢")
_BEFORE = {"usd", "eur", "gbp", "inr", "rs", "approximately", "about", "around", "roughly", "exactly", "approx", "only", "just"}
"""Words that may stand before a number."""
_BLACKBOARD = re.compile(r"\\mathbb\s?\{?\s?([A-Z])\s?\}?")
_MATRIX = re.compile(r"\\begin\s?\{([pbBv]?)(?:matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\s?\{\1(?:matrix|array)\}", re.DOTALL)
_HEADING = re.compile(
    rf"^{TEXT_OPEN}?(?:[A-Za-z][A-Za-z ]{{1,40}}(?:{TEXT_CLOSE}\s?:|:{TEXT_CLOSE}?)|"
    rf"(?i:the (?:final )?answer is):?{TEXT_CLOSE}?)\s?(?=\S)"
)
"""Words before an answer: Total: 18."""
_LABEL = re.compile(r"(?:(?i:option|choice|answer)\s)?\(?([A-J])(?:\)|[.:](?=\s))\s*(.*)", re.DOTALL)


def read(text: str, as_list: bool = False) -> Value:
    """The value that a text spells; `Words` if it is none that can be read.

    Args:
        as_list: commas between groups of three digits separate a list: 100,200,300 are three numbers.
    """
    if len(text) > LONGEST:
        return Words(plain(text[: LONGEST * 50]))
    tidied = _HEADING.sub("", tidy(text))
    try:
        return _value(tidied if as_list else with_thousands(tidied))
    except (Unreadable, RecursionError):
        return Words(plain(tidied))


def plain(text: str) -> str:
    """A text as texts are compared: no spaces but between digits, no case, no marks of words."""
    bare = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", re.sub(rf"[{TEXT_OPEN}{TEXT_CLOSE}]", " ", text).strip()).casefold()
    return bare if bare.endswith("..") else bare.removesuffix(".")


def unlabelled(text: str) -> tuple[str, str] | None:
    """The letter and the rest of a choice: "A" and "12" of (A) 12."""
    match = _LABEL.fullmatch(re.sub(rf"[{TEXT_OPEN}{TEXT_CLOSE}]", "", tidy(text)).strip()) if len(text) <= LONGEST else None
    return (match[1], match[2]) if match else None


def _value(text: str) -> Value:
    if (match := _MATRIX.fullmatch(text)) is not None and match[1] != "v":
        rows = match[2].strip(f" {ROW}").split(ROW)
        return Matrix(tuple(tuple(_element(tokens_of(cell)) for cell in row.split("&")) for row in rows))
    if (spelled := spelled_number(re.sub(rf"[{TEXT_OPEN}{TEXT_CLOSE}]", " ", text))) is not None:
        return Quantity(number(spelled))
    tokens = tokens_of(_BLACKBOARD.sub(r" \\mathbb\1 ", text))
    if not tokens:
        raise Unreadable("nothing")
    parts = _split(tokens, _is_separator)
    if len(parts) == 1:
        return _element(tokens)
    if len(parts) > MOST_ITEMS:
        raise Unreadable("too many")
    return _list(_shared_unit([_element(part) for part in parts if part]))


def _shared_unit(items: list[Value]) -> list[Value]:
    """3, 4 and 5 cm: the unit of the last is that of all."""
    last = items[-1]
    if not isinstance(last, Quantity) or last.unit is None:
        return items
    return [Quantity(i.node, last.unit) if isinstance(i, Quantity) and i.unit is None else i for i in items]


def _list(items: list[Value]) -> Value:
    flat: list[Value] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Sequence) and item.shape == "list" else [item])
    names = {item.name for item in flat if isinstance(item, Assigned)}
    if len(names) == 1:
        flat = [item.value if isinstance(item, Assigned) else item for item in flat]
    return Sequence("list", tuple(flat)) if len(flat) > 1 else flat[0]


def _is_separator(token: Token) -> bool:
    if token.kind in ("word", "text"):
        return token.text.lower() in ("and", "or")
    return token.text in (",", ";") or token.text in (r"\land", r"\lor")


def _split(tokens: Several[Token], separates: Callable[[Token], bool]) -> list[list[Token]]:
    """Tokens between those that separate, outside of brackets. `, and` separates once."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.kind != "text":
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
        if depth == 0 and separates(token):
            if parts[-1] or token.text in (",", ";"):
                parts.append([])
        else:
            parts[-1].append(token)
    if len(parts) > 1 and any(not part for part in parts[:-1]):
        parts = [part for i, part in enumerate(parts) if part or i == len(parts) - 1]
    return parts


def _element(tokens: Several[Token]) -> Value:
    tokens = list(tokens)
    while tokens and tokens[0].text in (r"\approx", r"\therefore", r"\implies", r"\Rightarrow", "="):
        tokens = tokens[1:]
    if not tokens:
        raise Unreadable("nothing")
    if any(token.text in (r"\pm", r"\mp") and token.kind == "command" for token in tokens):
        return _both_signs(tokens)
    sides = _split(tokens, lambda token: token.kind == "command" and token.text == r"\in")
    if len(sides) == 2:
        return _element(sides[1])
    sides = _split(tokens, lambda token: token.kind == "command" and token.text == r"\cup")
    if len(sides) > 1:
        return Union(tuple(_element(side) for side in sides))
    related = _related(tokens)
    if related is not None:
        return related
    for kind in (_enclosed, _name, _based, _ratio, _range):
        if (value := kind(tokens)) is not None:
            return value
    return _quantity(tokens)


def _both_signs(tokens: list[Token]) -> Value:
    """\\pm 3 is the list 3, -3."""
    both: list[Value] = []
    for sign, other in (("+", "-"), ("-", "+")):
        chosen = {r"\pm": sign, r"\mp": other}
        both.append(_element([Token("sign", chosen[t.text], t.spaced) if t.text in chosen else t for t in tokens]))
    return _list(both)


def _related(tokens: list[Token]) -> Value | None:
    places = [
        i for i, token in enumerate(tokens) if token.kind != "text" and (token.text in _RELATIONS or token.text == r"\approx")
    ]
    if not places or len(places) > MOST_RELATIONS or _enclosing(tokens[: places[0]]):
        return None
    if any(_enclosing(tokens[a:b]) for a, b in itertools.pairwise([*places, len(tokens)])):
        return None
    starts = [0, *(place + 1 for place in places)]
    sides = [tokens[start:end] for start, end in zip(starts, [*places, len(tokens)], strict=True)]
    operators = tuple(_RELATIONS.get(tokens[place].text, "=") for place in places)
    if not all(sides):
        if len(sides) == 2 and sides[1]:  # > 5, with nothing before it
            return Relation(operators, (Node("symbol", name=""), _quantity(sides[1]).node))
        raise Unreadable("a side is missing")
    name = _assigned(sides[0])
    if set(operators) == {"="} and name is not None:
        value = _related(tokens[places[0] + 1 :]) or _element(tokens[places[0] + 1 :])
        if not (isinstance(value, Quantity) and name in value.node.symbols):
            if not isinstance(value, Relation):
                return Assigned(name, value)
            if len(value.sides) > 1 and set(value.operators) == {"="} and name not in value.sides[-1].symbols:
                return Assigned(name, Quantity(value.sides[-1]) if _is_consistent(value) else value)
    nodes = tuple(_quantity(side).node for side in sides)
    return Relation(operators, nodes)


def _enclosing(tokens: list[Token]) -> int:
    """How many brackets are open at the end."""
    return sum((token.text in _OPEN) - (token.text in _CLOSE) for token in tokens if token.kind != "text")


def _is_consistent(relation: Relation) -> bool:
    values = [exactly(side) for side in relation.sides]
    return all(value is not None and value == values[0] for value in values) or any(side.symbols for side in relation.sides)


def _assigned(tokens: list[Token]) -> str | None:
    """The name on the left of an equation: x, x_1, f(x), \\text{area}, \\angle ABC."""
    text = "".join(token.text for token in tokens)
    if tokens[0].kind == "text" and all(token.kind in ("text", "word") for token in tokens):
        return text.casefold()
    if re.fullmatch(r"\([a-z](?:,[a-z])+\)", text):
        return text
    if re.fullmatch(r"(?:\\?[a-zA-Z]+)(?:_\{?\w+\}?)?'?(?:\(\\?[a-zA-Z]+\))?", text) and text not in (r"\pi", "e", "i"):
        return text.lstrip("\\") if len(text) > 1 and text[0] == "\\" else text.replace("{", "").replace("}", "")
    return None


def _enclosed(tokens: list[Token]) -> Value | None:
    """A tuple, a set or an interval, if one pair of brackets stands around everything."""
    first, last = tokens[0].text, tokens[-1].text
    depth, inside = 0, tokens[1:-1]
    for place, token in enumerate(tokens):
        depth += (token.text in _OPEN) - (token.text in _CLOSE) if token.kind != "text" else 0
        if depth == 0 and place < len(tokens) - 1:
            return None
    if first == r"\{" and last == r"\}":
        items = [_element(part) for part in _split(inside, _is_comma) if part]
        return Sequence("set", tuple(items))
    if (first, last) == ("{", "}"):
        parts = _split(inside, _is_comma)
        return _list([_element(part) for part in parts]) if 1 < len(parts) <= MOST_ITEMS and all(parts) else None
    if first not in ("(", "[") or last not in (")", "]"):
        return None
    parts = _split(inside, _is_comma)
    if len(parts) == 1:
        return _element(inside) if (first, last) == ("(", ")") and inside and _is_whole(inside) else None
    if not all(parts) or len(parts) > MOST_ITEMS:
        raise Unreadable("nothing between commas")
    items = [_element(part) for part in parts]
    if (first, last) in (("(", ")"), ("[", "]")):
        return Sequence("tuple" if first == "(" else "square", tuple(items))
    if len(items) != 2:
        raise Unreadable("an interval of three")
    return Interval(items[0], items[1], (first == "[", last == "]"))


def _is_comma(token: Token) -> bool:
    return token.kind == "sign" and token.text in (",", ";")


def _is_whole(tokens: list[Token]) -> bool:
    """Whether brackets hold more than an expression: a relation, or other brackets."""
    return any(token.text in _RELATIONS for token in tokens) or tokens[0].text in ("(", "[", r"\{")


def _name(tokens: list[Token]) -> Value | None:
    """The names of sets, which are no products of letters."""
    if len(tokens) == 1 and tokens[0].kind == "command":
        if tokens[0].text == r"\emptyset":
            return Sequence("set", ())
        if tokens[0].text == r"\mathbbR":
            infinity = Node("constant", name="infinity")
            return Interval(Quantity(Node("neg", (infinity,))), Quantity(infinity), (False, False))
        if tokens[0].text.startswith(r"\mathbb"):
            return Words(tokens[0].text)
    return None


def _based(tokens: list[Token]) -> Value | None:
    match = re.fullmatch(r"([0-9A-F]+)_\{?(\d{1,2})\}?", "".join(token.text for token in tokens))
    return Based(match[1].lstrip("0") or "0", int(match[2])) if match and 2 <= int(match[2]) <= 36 else None


def _ratio(tokens: list[Token]) -> Value | None:
    if any(token.kind in ("word", "text") and token.text.lower() in ("am", "pm", "a", "p") for token in tokens):
        return None
    parts = _split(tokens, lambda token: token.kind == "sign" and token.text == ":")
    return RatioNode(tuple(_quantity(part) for part in parts)) if 2 <= len(parts) <= 6 and all(parts) else None


def _range(tokens: list[Token]) -> Value | None:
    """3–5 and 3 to 5 are what lies between, both ends included. 3-5 is a difference."""
    parts = _split(tokens, lambda token: (token.text == "–" or token.text.lower() == "to") and token.kind != "number")
    if len(parts) != 2 or not all(parts):
        return None
    low, high = _quantity(parts[0]), _quantity(parts[1])
    unit = low.unit or high.unit
    return Interval(Quantity(low.node, unit), Quantity(high.node, unit), (True, True))


def _quantity(tokens: Several[Token]) -> Quantity:
    """A number or an expression, with what it counts."""
    tokens = [Token("sign", "-", t.spaced) if t.text == "–" else t for t in tokens]
    while tokens and tokens[0].kind in ("word", "text") and tokens[0].text.lower().rstrip(".") in _BEFORE:
        tokens = tokens[2:] if len(tokens) > 1 and tokens[1].text == "." else tokens[1:]
    tokens, currency = _without_currency(tokens)
    split = _unit_start(tokens)
    bare, words = tokens[:split], tokens[split:]
    factor = Fraction(1)
    while words and words[0].text.lower() in SCALES:
        factor, words = factor * SCALES[words[0].text.lower()], words[1:]
    text = " ".join(("" if token.text.isdigit() else " ") + token.text for token in words)
    if words and words[0].text.lower() in ("percent", "pct"):
        factor, text = factor / 100, ""
    node = parse(bare)
    unit = currency or (unit_of(text) if text else None)
    return Quantity(node if factor == 1 else Node("mul", (node, number(factor))), unit)


def _without_currency(tokens: list[Token]) -> tuple[list[Token], Unit | None]:
    signs = [token.text for token in tokens if token.kind == "sign" and token.text in _CURRENCY]
    if not signs:
        return tokens, None
    if len(set(signs)) > 1:
        raise Unreadable("two currencies")
    return [token for token in tokens if token.text not in _CURRENCY or token.kind != "sign"], unit_of(signs[0])


def _unit_start(tokens: list[Token]) -> int:
    """Where the unit begins: words, their powers and what divides them, behind at least a number. The end, if there is none."""
    start = place = len(tokens)
    while place > 1:
        token, before = tokens[place - 1], tokens[place - 2]
        if token.kind == "text" or (token.kind == "word" and _is_unit_word(token, tokens[: place - 1])):
            start = place - 1
        elif token.text in ("C", "F") and before.text == "°":
            start, place = place - 2, place - 1
        elif token.text == "°" and not any(t.text.lstrip("\\") in FUNCTIONS for t in tokens):
            start = place - 1
        elif token.kind == "number" and token.text in ("2", "3") and before.text == "^":
            place -= 1
        elif token.text == "}" and [t.text for t in tokens[max(0, place - 4) : place - 2]] == ["^", "{"]:
            place -= 3
        elif token.text not in ("/", ".", "{", "}", ",", "-", "'") or start == len(tokens):
            break
        place -= 1
    if start < len(tokens) and tokens[start - 1].text == "/":
        start -= 1
    text = " ".join(token.text for token in tokens[start:])
    counts = any(token.kind in ("number", "command") for token in tokens[:start])
    if start < len(tokens) and not (counts and is_unit_text(text)):
        raise Unreadable("words")
    return start


def _is_unit_word(token: Token, before: list[Token]) -> bool:
    """Whether letters are a word and no product: four or more, or a unit. One letter is a unit behind a number alone."""
    word = token.text
    if len(word) == 1:
        last = before[-1]
        alone = last.kind == "number" and all(t.kind in ("number", "word") or t.text in ("-", "+", "/", ".") for t in before)
        if word == "a":
            return last.kind == "word"
        return word in LETTERS and (last.text == "/" or (token.spaced and alone))
    if len(word) > 3:
        return word not in SYMBOLS and word not in ("infinity", "sqrt", "frac")
    if token.spaced and before[-1].kind in ("word", "text"):
        return True
    known = unit_of(word) is not None or word.lower() in (*SCALES, *NOUNS, *SHORT_WORDS, "pct")
    return known and (token.spaced or word in UNSPACED or before[-1].kind != "number")
