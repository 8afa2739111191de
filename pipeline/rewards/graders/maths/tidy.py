"""One notation for many: dresses of typesetting taken off, Unicode spelled in LaTeX, thousands joined. All in linear time."""

from __future__ import annotations

import re

_UNICODE = {
    **{"−": "-", "﹣": "-", "－": "-", "‐": "-", "‑": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∗": "*"},
    **{"÷": "/", "∕": "/", "⁄": "/", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty "},
    **{"π": r"\pi ", "√": r"\sqrt ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ", "º": "°", "∅": r"\emptyset ", "％": "%"},
    **{"²": "^2", "³": "^3", "½": r"\frac12 ", "⅓": r"\frac13 ", "⅔": r"\frac23 ", "¼": r"\frac14 ", "¾": r"\frac34 "},
    **{"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "’": "'", "“": '"', "”": '"', "—": "–", "θ": r"\theta "},
}
_TRANSLATION = str.maketrans(_UNICODE)
_CONTROLS = dict.fromkeys(range(9))
_SPACES = re.compile(r"\\[,;:> ]|~|\\(?:quad|qquad|thinspace|displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])")
_NOTHING = re.compile(r"\\!|\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|bigg|Bigg|middle)(?![a-zA-Z])\.?")
_DEGREE = re.compile(r"\^\s?\{?\s?\\circ(?![a-zA-Z])\s?\}?|\\degree(?![a-zA-Z])|\\textdegree(?![a-zA-Z])")
_SAME = {
    **{"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "geq": "ge", "neq": "ne", "leqslant": "le"},
    **{"geqslant": "ge", "lt": "<", "gt": ">", "ast": "*", "div": "/", "lbrace": r"\{", "rbrace": r"\}", "lvert": "|"},
    **{"rvert": "|", "vert": "|", "mid": "|", "dots": "...", "ldots": "...", "cdots": "...", "varnothing": "emptyset"},
    **{"tbinom": "binom", "dbinom": "binom", "colon": ":", "dollar": "$", "pounds": "£", "euro": "€", "percent": "%"},
    **{"lbrack": "[", "rbrack": "]", "simeq": "approx", "sim": "approx", "lparen": "(", "rparen": ")", "textdollar": "$"},
}
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_RAW = "mathbf|boldsymbol|bm|mathit|mathcal|mathsf|mathnormal|underline|emph|overbrace|mathopen|mathclose|ensuremath|fbox|boxed"
_WORDS = "text|textbf|textit|textrm|textnormal|texttt|mathrm|mbox|hbox|operatorname|rm|unit|si"
_DRESS = re.compile(rf"\\(?:({_RAW})|({_WORDS}))\s?\*?\s?\{{")
_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp gcd lcm max min lg"
_FUNCTIONS = frozenset(_NAMES.split())
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[ ]\d{3})+(?![\d ]*\d|\s?\\frac|/)")
_MOST_FONTS = 30
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_AROUND = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"'))
TEXT_OPEN, TEXT_CLOSE = "\x02", "\x03"
"""Around the words of \\text{…}."""
ROW = "\x04"
"""The end of a matrix's row."""


def tidy(text: str) -> str:
    """The text in one notation: no dress, no spacing commands, `\\text{…}` between `TEXT_OPEN` and `TEXT_CLOSE`.

    >>> tidy(r"$\\displaystyle 12\\,345{,}678$."), tidy(r"\\left(\\dfrac12\\right)"), tidy("**−5**")
    ('12345678', '(\\\\frac12)', '-5')
    """
    text = undressed(text).translate(_TRANSLATION).translate(_CONTROLS)
    text = re.sub(r"(?<=\d)\s?[xX]\s?(?=10\s?\^)", r" \\times ", text)
    text = re.sub(r"(\d)\{,\}(?=\d{3}(?!\d))", r"\1 ", text.replace("\\\\", ROW))
    text = re.sub(r"(\d)\{,\}(?=\d)", r"\1.", text).replace("{,}", ",")
    text = re.sub(r"\\([%$])", r"\1", text.replace("\\#", ""))
    text = _DEGREE.sub("°", _SPACES.sub(" ", _NOTHING.sub("", text)))
    text = _COMMAND.sub(_renamed, _without_dress(text))
    text = " ".join(undressed(text).split())
    return _THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)


def undressed(text: str) -> str:
    """The text without what stands around all of it: dollar signs, \\(…\\), stars, quotes, and punctuation at its end."""
    before = None
    while before != text:
        before = text
        text = text.strip().rstrip(",;:").strip()
        if text.endswith(".") and not text.endswith("..."):
            text = text[:-1].rstrip()
        text = next((inner for around in _AROUND if (inner := _inside(text, *around)) is not None), text)
    return re.sub(r"(?<!\\)\$(?=\S)([^$]*[^$\s\\])\$(?!\d)", r" \1 ", text)


def _inside(text: str, opening: str, ending: str) -> str | None:
    """What stands between the two, if they stand around all of it and nowhere else."""
    inner = text[len(opening) : -len(ending)]
    around = len(text) >= len(opening) + len(ending) and text.startswith(opening) and text.endswith(ending)
    currency = opening == "$" and text.endswith("\\$")
    return inner if around and not currency and opening not in inner.replace("\\$", "") else None


def _renamed(match: re.Match[str]) -> str:
    name = _SAME.get(match[1])
    if name is None:
        return match[0]
    return f"\\{name}" if name.isalpha() else name


def _without_dress(text: str) -> str:
    """Fonts taken off; words in \\text{…} marked as such, unless they hold a number that is to be read."""
    parts, place, fonts = [], 0, 0
    while (match := _DRESS.search(text, place)) is not None and fonts < _MOST_FONTS:
        end = closing(text, match.end() - 1)
        if end is None:
            break
        parts.append(text[place : match.start()])
        inner = text[match.end() : end]
        if match[1] is None and "{" not in inner:
            parts.append(_as_words(inner))
            place = end + 1
        else:
            text, place, fonts = f" {inner} {text[end + 1 :]}", 0, fonts + 1
    return "".join(parts) + text[place:]


def _as_words(inner: str) -> str:
    word = inner.strip()
    if word in _FUNCTIONS:
        return f"\\{word} "
    if word in ("e", "i") or not any(c.isalpha() for c in word) or any(c.isdigit() for c in word):
        return f" {inner.replace('$', ' $')} "
    if re.fullmatch(r"\(?[A-J]\)?", word):
        return f" {word} "
    return f" {TEXT_OPEN}{word.replace('$', '')}{TEXT_CLOSE} "


def closing(text: str, opening: int) -> int | None:
    """The place of the brace that closes the one at `opening`; None if none does. Escaped braces do not count."""
    depth = 0
    for match in _BRACE.finditer(text, opening):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def with_thousands(text: str) -> str:
    """Commas between thousands taken out: in 1,234 and 1,234.5, and in 1,234, 5,678, where spaces tell the list.

    >>> with_thousands("1,234.5"), with_thousands("(1,234)"), with_thousands("1,234, 5"), with_thousands("1,23")
    ('1234.5', '(1,234)', '1234, 5', '1,23')
    """
    if re.search(r"[(\[]|\\\{", text) and not re.search(r"[,;] ", text):
        return text
    return re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)", lambda match: match[0].replace(",", ""), text)
