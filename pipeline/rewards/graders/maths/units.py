"""Units: which words after a number are one, what they are of, and by what they convert."""

from __future__ import annotations

import re
from fractions import Fraction

from pipeline.rewards.graders.maths.nodes import Unit

_F = Fraction

_TABLE = (
    ("length", "m meter meters metre metres", _F(1)),
    ("length", "km kilometer kilometers kilometre kilometres", _F(1000)),
    ("length", "cm centimeter centimeters centimetre centimetres", _F(1, 100)),
    ("length", "mm millimeter millimeters millimetre millimetres", _F(1, 1000)),
    ("length", "in inch inches", _F(254, 10000)),
    ("length", "ft foot feet", _F(3048, 10000)),
    ("length", "yd yds yard yards", _F(9144, 10000)),
    ("length", "mi mile miles", _F(1609344, 1000)),
    ("mass", "g gram grams", _F(1)),
    ("mass", "kg kgs kilogram kilograms kilo kilos", _F(1000)),
    ("mass", "mg milligram milligrams", _F(1, 1000)),
    ("mass", "lb lbs pound pounds", _F(45359237, 100000)),
    ("mass", "oz ounce ounces", _F(45359237, 1600000)),
    ("mass", "ton tons tonne tonnes", _F(1000000)),
    ("time", "s sec secs second seconds", _F(1)),
    ("time", "min mins minute minutes", _F(60)),
    ("time", "h hr hrs hour hours", _F(3600)),
    ("time", "day days", _F(86400)),
    ("time", "week weeks", _F(7 * 86400)),
    ("calendar", "month months", _F(1)),
    ("calendar", "year years yr yrs", _F(12)),
    ("volume", "L l liter liters litre litres", _F(1)),
    ("volume", "mL ml milliliter milliliters millilitre millilitres", _F(1, 1000)),
    ("volume-us", "gal gallon gallons", _F(1)),
    ("volume-us", "quart quarts", _F(1, 4)),
    ("volume-us", "pint pints", _F(1, 8)),
    ("dollar", "$ dollar dollars usd buck bucks", _F(1)),
    ("dollar", "¢ cent cents", _F(1, 100)),
    ("euro", "€ euro euros eur", _F(1)),
    ("sterling", "£ gbp", _F(1)),
    ("yen", "¥ yen jpy yuan rmb", _F(1)),
    ("rupee", "₹ rs rupee rupees inr", _F(1)),
    ("angle", "° degree degrees deg", _F(1)),
    ("radian", "rad radian radians", _F(1)),
    ("celsius", "°C", _F(1)),
    ("fahrenheit", "°F", _F(1)),
    ("kelvin", "K kelvin kelvins", _F(1)),
    ("force", "N newton newtons", _F(1)),
    ("energy", "J joule joules", _F(1)),
    ("power", "W watt watts", _F(1)),
    ("voltage", "V volt volts", _F(1)),
    ("current", "A amp amps ampere amperes", _F(1)),
    ("frequency", "Hz hertz", _F(1)),
    ("speed", "mph", _F(44704, 100000)),
    ("speed", "kmh kph kmph", _F(1000, 3600)),
)
_UNITS = {name: Unit(dimension, factor) for dimension, names, factor in _TABLE for name in names.split()}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
POUND = _UNITS["pound"]
"""Of mass, or of sterling."""
LETTERS = frozenset(name for name in _UNITS if len(name) == 1 and name.isalpha())
"""Units of one letter: after a space, or in \\text, they are units; otherwise letters are variables."""

_SHORT_UNITS = "cm mm km kg mg ml mL ft lb lbs oz hrs hr min mins mph kph kmh Hz deg rad"
UNSPACED = frozenset(_SHORT_UNITS.split())
"""Short units that may stand right behind a number, where other letters are variables."""
_SHORT_NOUNS = (
    "men cow hen egg pie bus car pen toy box boy dog cat cup bag jar can hat ant bee pig kid cut set way man row inn pcs"
)
NOUNS = frozenset(_SHORT_NOUNS.split())
"""Short words that are counted."""

SCALES = {
    **{"hundred": _F(100), "thousand": _F(1000), "million": _F(10**6), "billion": _F(10**9), "trillion": _F(10**12)},
    **{name: _F(1, 10**size) for size, name in enumerate(("tenth", "hundredth", "thousandth"), 1)},
    **{name: _F(1, 10**size) for size, name in enumerate(("tenths", "hundredths", "thousandths"), 1)},
    **{name: _F(1, size) for name, size in (("thirds", 3), ("fourths", 4), ("fifths", 5), ("sixths", 6), ("sevenths", 7))},
    **{name: _F(1, size) for name, size in (("halves", 2), ("eighths", 8), ("ninths", 9))},
}
"""Words after a number that multiply it: 5 million, 3 tenths."""

_SENTENCES = """is are was not no or and than but if when unless except wrong false incorrect isn't never to from plus minus times
divided by equals mod modulo remainder factorial choose root"""
NEVER = frozenset(_SENTENCES.split())
"""Words that no unit has: with one of them, what stands behind a number is a sentence."""


def is_unit_text(text: str) -> bool:
    """Whether words that stand behind a number may name what it counts."""
    words = re.findall(r"[^\W\d_]+(?:'[a-z]+)?", text)
    return not any(word.lower() in NEVER for word in words)


def unit_of(text: str) -> Unit | None:
    """The unit that a text names; None for what is counted, such as apples, and for what is not known.

    >>> unit_of("cm^2") == unit_of("square centimeters"), unit_of("apples")
    (True, None)
    """
    top, *bottom = re.split(r"/|\bper\b", text.strip().strip("."))
    upper = _product(top)
    lowers = [_product(part) for part in bottom]
    if upper is None or any(lower is None for lower in lowers):
        return upper if upper is not None and upper.dimension in ("dollar", "euro", "angle") else None
    dimension, factor = upper.dimension, upper.factor
    for lower in lowers:
        assert lower is not None
        dimension, factor = f"{dimension}/{lower.dimension}", factor / lower.factor
    known = {"length/time": "speed"}
    return Unit(known.get(dimension, dimension), factor)


def _product(text: str) -> Unit | None:
    words = re.findall(r"°\s*[CF]\b|[$€£¥₹¢°]|[^\W\d_]+|\^?\d", text)
    power, found = 1, None
    for word in words:
        joined = word.replace(" ", "")
        if joined.lower() in _POWERS:
            power = _POWERS[joined.lower()]
        elif joined.lstrip("^") in ("2", "3"):
            power = int(joined.lstrip("^"))
        elif found is None and (unit := _UNITS.get(joined) or _UNITS.get(joined.lower())) is not None:
            found = unit
        else:
            return found if found is not None and found.dimension in ("dollar", "euro") else None
    if found is None or power == 1:
        return found
    if found.dimension == "length" and power == 3:
        return Unit("volume", found.factor**3 * 1000)
    return Unit(f"{found.dimension}^{power}", found.factor**power)
