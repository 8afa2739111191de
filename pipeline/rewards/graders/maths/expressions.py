"""Expressions: a parser by recursive descent, with everything bounded. What it does not know is unreadable, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from pipeline.rewards.graders.maths.nodes import Node, Unreadable, number
from pipeline.rewards.graders.maths.tokens import Token

DEEPEST = 60

FUNCTIONS = {
    **dict.fromkeys(("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan"), 1),
    **dict.fromkeys(("log", "ln", "lg", "exp", "sqrt", "abs", "floor", "ceil"), 1),
    **dict.fromkeys(("max", "min", "gcd", "lcm", "binom"), 2),
}
"""Names of functions, and how many arguments they have at least."""
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log", "ceiling": "ceil"}
_CONSTANTS = {r"\pi": "pi", r"\infty": "infinity", "pi": "pi", "infinity": "infinity", "inf": "infinity", "e": "e", "i": "i"}
_GREEK = """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon
phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar"""
SYMBOLS = {f"\\{name}": name for name in _GREEK.split()} | {name: name for name in _GREEK.split() if len(name) > 2}
_TIMES = {"*", r"\times", r"\cdot", r"\bullet"}
_FENCES = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", "|": "|", r"\{": r"\}"}
_LONGEST_PRODUCT = 3
"""Letters that are read as a product of variables; more are a word."""
_ENGLISH = """the is it so we he she no of in on at to by an as or if and not yes has had was are for per her his you all one two
six ten day cat dog sun mon tue wed thu fri sat may jan feb mar apr jun jul aug sep oct nov dec red box boy bob ann tom who why
how get got let put set say see add sum but can did its out our any new now old way man men won lot off big low odd"""
SHORT_WORDS = frozenset(_ENGLISH.split())
"""Words that are no products of letters."""


def parse(tokens: Sequence[Token], plus_or_minus: int = 1) -> Node:
    """The expression that the tokens spell.

    Args:
        plus_or_minus: what \\pm stands for, 1 or -1.

    Raises:
        Unreadable: they spell none.
    """
    parser = _Parser(list(tokens), plus_or_minus)
    node = parser.sum()
    if parser.here is not None:
        raise Unreadable(f"unexpected {parser.here.text!r}")
    return node


class _Parser:
    def __init__(self, tokens: list[Token], plus_or_minus: int) -> None:
        self._tokens, self._place, self._depth = tokens, 0, 0
        self._sign = plus_or_minus
        self._bars = 0

    @property
    def here(self) -> Token | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def _next(self, ahead: int = 1) -> Token | None:
        return self._tokens[self._place + ahead] if self._place + ahead < len(self._tokens) else None

    def _is(self, *texts: str) -> bool:
        return self.here is not None and self.here.kind != "text" and self.here.text in texts

    def _take(self, *texts: str) -> Token:
        token = self.here
        if token is None or (texts and token.text not in texts):
            raise Unreadable(f"expected {' or '.join(texts) or 'more'}")
        self._place += 1
        return token

    def sum(self) -> Node:
        terms = [self._term()]
        while self._is("+", "-", r"\pm", r"\mp"):
            negative = self._negative(self._take().text)
            term = self._term()
            terms.append(Node("neg", (term,)) if negative else term)
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def _negative(self, sign: str) -> bool:
        return sign == "-" or (sign == r"\pm" and self._sign < 0) or (sign == r"\mp" and self._sign > 0)

    def _term(self) -> Node:
        negative = False
        while self._is("+", "-", r"\pm", r"\mp"):
            negative ^= self._negative(self._take().text)
        factors, divisions = [self._mixed() or self._power()], 0
        while True:
            if self._is(*_TIMES):
                self._take()
                factors.append(self._signed())
            elif self._is("/"):
                self._take()
                factors = [Node("div", (_product(factors), self._signed()))]
                divisions += 1
            elif self._starts_factor():
                factors.append(self._power())
            else:
                break
        if divisions > DEEPEST:
            raise Unreadable("too many divisions")
        return Node("neg", (_product(factors),)) if negative else _product(factors)

    def _signed(self) -> Node:
        if self._is("-", "+"):
            negative = self._take().text == "-"
            return Node("neg", (self._power(),)) if negative else self._power()
        return self._power()

    def _mixed(self) -> Node | None:
        """3\\frac{1}{2} and 3 1/2: a whole number and a proper fraction of whole numbers, added."""
        whole, then = self.here, self._next()
        if whole is None or then is None or whole.kind != "number" or not whole.text.isdigit():
            return None
        start = self._place
        self._place += 1
        if then.text == r"\frac":
            part = self._atom()
            if part.kind == "div" and all(p.kind == "number" and p.value.denominator == 1 for p in part.parts):
                top, bottom = (p.value for p in part.parts)
                if 0 < top < bottom and not self._is("^", "!"):
                    return self._postfix(Node("add", (number(whole.value), part)))
            self._place = start + 1
        slash, below = self._next(), self._next(2)
        if (
            slash is not None
            and slash.text == "/"
            and below is not None
            and all(t.text.isdigit() for t in (then, below))
            and 0 < then.value < below.value
        ):
            self._place += 3
            return self._postfix(Node("add", (number(whole.value), Node("div", (number(then.value), number(below.value))))))
        self._place = start
        return None

    def _starts_factor(self) -> bool:
        token = self.here
        if token is None or token.kind == "text":
            return False
        if token.kind == "number":  # 2(3)4 is a product; 2 3 is nothing
            before = self._tokens[self._place - 1]
            return before.text in (")", "}") and not token.spaced
        if token.kind == "word":
            return True
        if token.kind == "command":
            known = (r"\frac", r"\lfloor", r"\lceil", *_CONSTANTS, *SYMBOLS)
            return token.text in known or token.text[1:] in FUNCTIONS
        return token.text in ("(", "[", "{") or (token.text == "|" and self._bars == 0)

    def _power(self) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable("too deep")
        node = self._postfix(self._atom())
        if self._is("^"):
            self._take()
            node = self._postfix(Node("pow", (node, self._exponent())))
        self._depth -= 1
        return node

    def _exponent(self) -> Node:
        if self._is("-", "+"):
            negative = self._take().text == "-"
            inner = self._power()
            return Node("neg", (inner,)) if negative else inner
        return self._power()

    def _postfix(self, node: Node) -> Node:
        if self._is("!") and (after := self._next()) is not None and after.text == "!":
            raise Unreadable("a double factorial")
        while self._is("!", "%", "°"):
            sign = self._take().text
            if sign == "!":
                node = Node("factorial", (node,))
            elif sign == "%":
                node = Node("div", (node, number(100)))
            else:
                node = Node("mul", (node, Node("div", (Node("constant", name="pi"), number(180)))))
        return node

    def _atom(self) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable("too deep")
        node = self._bare_atom(self._take())
        self._depth -= 1
        return node

    def _bare_atom(self, token: Token) -> Node:
        if token.kind == "number":
            if self._is(r"\overline") and "." in token.text:
                return self._repeating(token)
            if self._is("...") and len(digits := token.text.partition(".")[2]) > 2 and digits[-3:] == 3 * digits[-1]:
                self._take()
                return number(token.value + Fraction(int(digits[-1]), 9 * 10 ** len(digits)))
            return number(token.value, token.is_decimal)
        if token.kind == "word":
            return self._word(token)
        if token.kind == "command":
            return self._command(token)
        if token.kind == "sign" and token.text in _FENCES:
            return self._fenced(token.text)
        raise Unreadable(f"unexpected {token.text!r}")

    def _repeating(self, token: Token) -> Node:
        """0.1\\overline{6} is a sixth."""
        self._take()
        digits = "".join(self._take().text for _ in "{.}")[1:-1]
        if not digits.isdigit() or len(digits) > 50:
            raise Unreadable("a line over it")
        places = len(token.text.partition(".")[2])
        return number(token.value + Fraction(int(digits), 10**places * (10 ** len(digits) - 1)))

    def _fenced(self, opening: str) -> Node:
        self._bars += opening == "|"
        node = self.sum()
        if opening == "{" and self._is(r"\choose", r"\over"):
            kind = "binom" if self._take().text == r"\choose" else "div"
            node = Node(kind, (node, self.sum()))
        self._take(_FENCES[opening])
        self._bars -= opening == "|"
        names = {"|": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}
        return Node(names[opening], (node,)) if opening in names else node

    def _command(self, token: Token) -> Node:
        text, name = token.text, token.text[1:]
        if text in _CONSTANTS:
            return Node("constant", name=_CONSTANTS[text])
        if text in SYMBOLS:
            return self._symbol(SYMBOLS[text])
        if text == r"\frac":
            top = self._argument(single=True)
            return Node("div", (top, self._argument(single=True)))
        if text == r"\binom":
            top = self._argument(single=True)
            return Node("binom", (top, self._argument(single=True)))
        if text == r"\sqrt":
            return self._root()
        if text in (r"\lfloor", r"\lceil"):
            return self._fenced(text)
        if text == r"\overline":
            raise Unreadable("a line over it")
        if name in FUNCTIONS:
            return self._function(name)
        raise Unreadable(f"unknown {text}")

    def _root(self) -> Node:
        if not self._is("["):
            return Node("sqrt", (self._argument(),))
        self._take()
        degree = self.sum()
        self._take("]")
        return Node("root", (self._argument(), degree))

    def _argument(self, single: bool = False) -> Node:
        """What a command is applied to: a group, or the next sign; of \\frac12 one digit."""
        token = self.here
        if token is not None and token.kind == "number" and single and token.text.isdigit():
            first, rest = token.text[0], token.text[1:]
            if rest:
                self._tokens[self._place : self._place + 1] = [Token("number", first, token.spaced), Token("number", rest)]
            self._place += 1
            return number(int(first))
        if token is not None and token.text == "{":
            return self._fenced(self._take().text)
        return self._atom()

    def _word(self, token: Token) -> Node:
        word = token.text
        name = _ALIASES.get(word, word)
        if name in FUNCTIONS and self._is("(", "^", "_"):
            return self._function(name)
        if word in _CONSTANTS:
            return Node("constant", name=_CONSTANTS[word])
        if word in SYMBOLS:
            return self._symbol(SYMBOLS[word])
        if len(word) == 1 and word.isalpha():
            return self._symbol(word)
        if len(word) <= _LONGEST_PRODUCT and word.isalpha() and word.lower() not in SHORT_WORDS:
            parts = tuple(self._letter(letter) for letter in word[:-1])
            last = Token("word", word[-1])
            self._tokens[self._place - 1] = last
            return Node("mul", (*parts, self._letter(word[-1])))
        raise Unreadable(f"a word, {word[:40]!r}")

    def _letter(self, letter: str) -> Node:
        if letter in _CONSTANTS:
            return Node("constant", name=_CONSTANTS[letter])
        return Node("symbol", name=letter)

    def _symbol(self, name: str) -> Node:
        if self._is("_"):
            self._take()
            name += "_" + self._subscript()
        return Node("symbol", name=name)

    def _subscript(self) -> str:
        if not self._is("{"):
            return self._take().text
        self._take()
        text = ""
        while not self._is("}"):
            text += self._take().text
        self._take("}")
        return text

    def _function(self, name: str) -> Node:
        name = _ALIASES.get(name, name)
        base = power = None
        while self._is("_", "^"):
            if self._take().text == "_":
                base = self._argument()
            else:
                power = self._exponent()
        arguments = self._arguments(name)
        if len(arguments) < FUNCTIONS[name] or (len(arguments) > 1 and FUNCTIONS[name] == 1):
            raise Unreadable(f"{name} of {len(arguments)}")
        if base is not None and name != "log":
            raise Unreadable(f"{name} with a subscript")
        node = Node(name, (*arguments, base) if base is not None else arguments)
        return node if power is None else Node("pow", (node, power))

    def _arguments(self, name: str) -> tuple[Node, ...]:
        if self._is("(", "{"):
            end = _FENCES[self._take().text]
            found = [self.sum()]
            while self._is(","):
                self._take()
                found.append(self.sum())
            self._take(end)
            return tuple(found)
        product = self._power()  # \sin 2x is the sine of 2x
        while self._starts_factor() and not self._is("(", "[") and not self._starts_function():
            product = Node("mul", (product, self._power()))
        return (product,)

    def _starts_function(self) -> bool:
        return self.here is not None and self.here.text.lstrip("\\") in FUNCTIONS and self.here.text != r"\sqrt"


def _product(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
