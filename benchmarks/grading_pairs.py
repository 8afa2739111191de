"""Pairs of an answer's notations, by kind: a reference, the same value in another dress, and a value that is another.

What is the same is so by construction, so neither grader under test decides it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from math import gcd

Pair = tuple[str, str, str]
"""Reference, right, wrong."""
Random = random.Random


def integers(r: Random) -> Pair:
    n = r.randint(-999, 9999)
    return (
        str(n),
        r.choice([f"{n}", f"{n}.", f"{n}.0", f"+{n}" if n > 0 else f"{n}", f"${n}$"]),
        str(n + r.choice([-10, -1, 1, 2])),
    )


def thousands(r: Random) -> Pair:
    n = r.randint(1000, 9_999_999)
    plain, commas = str(n), f"{n:,}"
    dresses = [plain, commas, commas.replace(",", "{,}"), commas.replace(",", r"\,"), commas.replace(",", r",\!")]
    return (
        r.choice([plain, commas, commas.replace(",", r"\,")]),
        r.choice(dresses),
        r.choice([f"{n + 1:,}", str(n // 10), f"{n % 1000}"]),
    )


def decimals(r: Random) -> Pair:
    places = r.randint(1, 4)
    n = r.randint(-99_999, 99_999) * 10 + r.randint(1, 9)
    value = Fraction(n, 10**places)
    text = f"{float(value):.{places}f}"
    same = [text, text + "0", rf"\frac{{{value.numerator}}}{{{value.denominator}}}" if value > 0 else text]
    return text, r.choice(same), f"{float(value + Fraction(r.choice([-1, 1, 3]), 10**places)):.{places}f}"


def fractions(r: Random) -> Pair:
    a, b, k = r.randint(1, 60), r.randint(2, 60), r.randint(2, 5)
    while gcd(a, b) > 1 or b == 1:
        a, b = r.randint(1, 60), r.randint(2, 60)
    same = [rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a * k}}}{{{b * k}}}", f"{a}/{b}", rf"\tfrac{{{a}}}{{{b}}}"]
    if a < 10 and b < 10:
        same.append(rf"\frac{a}{b}")
    return (
        r.choice(same),
        r.choice(same),
        r.choice([rf"\frac{{{a + 1}}}{{{b}}}", rf"\frac{{{a}}}{{{b + 1}}}", rf"-\frac{{{a}}}{{{b}}}"]),
    )


def negative_fractions(r: Random) -> Pair:
    a, b = r.randint(1, 60), r.randint(61, 97)
    same = [rf"-\frac{{{a}}}{{{b}}}", rf"\frac{{-{a}}}{{{b}}}", f"-{a}/{b}", rf"\frac{{{a}}}{{-{b}}}"]
    return r.choice(same), r.choice(same), rf"\frac{{{a}}}{{{b}}}"


def mixed_numbers(r: Random) -> Pair:
    whole, below = r.randint(1, 40), r.randint(2, 9)
    above = r.randint(1, below - 1)
    top = whole * below + above
    same = [rf"{whole}\frac{{{above}}}{{{below}}}", f"{whole} {above}/{below}", rf"\frac{{{top}}}{{{below}}}", f"{top}/{below}"]
    wrong = [
        rf"\frac{{{above}}}{{{below}}}",
        rf"{whole}\cdot\frac{{{above}}}{{{below}}}",
        rf"{whole + 1}\frac{{{above}}}{{{below}}}",
    ]
    return r.choice(same), r.choice(same), r.choice(wrong)


def percent(r: Random) -> Pair:
    n = r.randint(1, 999)
    text = str(n) if r.random() < 0.5 else f"{n // 10}.{n % 10}"
    same = [rf"{text}\%", f"{text}%", f"{text} percent", rf"{text}\text{{ percent}}"]
    return r.choice(same[:2]), r.choice(same), r.choice([text, rf"{n + 1}\%", rf"{text}5\%" if "." in text else rf"{text}.5\%"])


def money(r: Random) -> Pair:
    n, cents = r.randint(1, 9999), r.randint(0, 99)
    text = f"{n:,}.{cents:02d}" if r.random() < 0.6 else f"{n:,}"
    same = [rf"\${text}", f"${text}", rf"\text{{\${text}}}", text, f"{text} dollars", rf"{text}\text{{ dollars}}"]
    return r.choice(same[:2]), r.choice(same), r.choice([rf"\${n + 1}.{cents:02d}", f"€{text}", rf"{n + 7}"])


def scientific(r: Random) -> Pair:
    digits, power = r.randint(11, 99), r.choice([-31, -19, -9, -5, 4, 6, 12, 23])
    if digits % 10 == 0:
        digits += 1
    lead = f"{digits // 10}.{digits % 10}"
    same = [
        rf"{lead}\times10^{{{power}}}",
        rf"{lead} \cdot 10^{{{power}}}",
        f"{lead}e{power}",
        rf"{digits} \times 10^{{{power - 1}}}",
    ]
    wrong = [
        rf"{lead}\times10^{{{power - 1}}}",
        rf"{digits // 10}.{(digits + 1) % 10}\times 10^{{{power}}}",
        f"{lead}e{power + 1}",
    ]
    return r.choice(same[:3]), r.choice(same), r.choice(wrong)


def powers(r: Random) -> Pair:
    base, power = r.randint(2, 9), r.randint(3, 60)
    same = [f"{base}^{{{power}}}", f"{base}**{power}", str(base**power)]
    return (
        r.choice(same[:2]),
        r.choice(same),
        r.choice([f"{base}^{{{power - 1}}}", str(base), f"{base}^{{{power}}}+1", str(base * power + 1)]),
    )


def radicals(r: Random) -> Pair:
    out, under = r.randint(2, 9), r.choice([2, 3, 5, 6, 7, 10, 11, 13])
    same = [
        rf"{out}\sqrt{{{under}}}",
        rf"\sqrt{{{out * out * under}}}",
        rf"{out} \sqrt {{{under}}}",
        rf"\frac{{{out * under}}}{{\sqrt{{{under}}}}}",
    ]
    if under < 10:
        same.append(rf"{out}\sqrt{under}")
    return (
        r.choice(same[:2]),
        r.choice(same),
        r.choice([str(out), rf"\sqrt{{{out * under}}}", rf"{out + 1}\sqrt{{{under}}}", rf"{out}+\sqrt{{{under}}}"]),
    )


def multiples_of_pi(r: Random) -> Pair:
    a, b = r.randint(1, 30), r.choice([1, 2, 3, 4, 6])
    same = (
        [rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}\pi", rf"{a}\pi/{b}"]
        if b > 1
        else [rf"{a}\pi", rf"{a} \pi", rf"{a}\cdot\pi", f"{a}π"]
    )
    return r.choice(same), r.choice(same), r.choice([str(a), rf"{a + 1}\pi", rf"{a}\pi^2", rf"{a * 3.14:.2f}"])


def polynomials(r: Random) -> Pair:
    a, b, x = r.randint(1, 9), r.randint(1, 9), r.choice("xyn")
    expanded = f"{x}^2+{a + b}{x}+{a * b}"
    same = [expanded, f"({x}+{a})({x}+{b})", f"{a * b} + {a + b}{x} + {x}^{{2}}", f"{x}({x}+{a + b})+{a * b}"]
    wrong = [f"{x}^2+{a + b}{x}+{a * b + 1}", f"({x}-{a})({x}+{b})", f"{a + b}{x}+{a * b}", str(a * b), f"{x}^2"]
    return r.choice(same[:3]), r.choice(same), r.choice(wrong)


def tuples(r: Random) -> Pair:
    numbers = r.sample(range(-9, 30), r.randint(2, 4))
    text = ", ".join(map(str, numbers))
    same = [f"({text})", f"({text.replace(' ', '')})", rf"\left({text}\right)"]
    turned = ", ".join(map(str, numbers[::-1]))
    return (
        r.choice(same),
        r.choice(same),
        r.choice([f"({turned})", rf"\{{{text}\}}", f"({text}, 31)", str(numbers[0]), f"({numbers[0]}, 40)"]),
    )


def sets(r: Random) -> Pair:
    numbers = r.sample(range(-9, 30), r.randint(2, 5))
    shuffled = r.sample(numbers, len(numbers))
    wrong = [rf"\{{{', '.join(map(str, numbers[1:]))}, 77\}}", rf"\{{{', '.join(map(str, [*numbers, 55]))}\}}", str(numbers[0])]
    return rf"\{{{', '.join(map(str, numbers))}\}}", rf"\{{{','.join(map(str, shuffled))}\}}", r.choice(wrong)


def lists(r: Random) -> Pair:
    numbers = r.sample(range(1, 99), r.randint(2, 4))
    texts = [*map(str, numbers)]
    same = [", ".join(texts), ",".join(texts), ", ".join(texts[:-1]) + rf" \text{{ and }} {texts[-1]}", ", ".join(texts[::-1])]
    return ", ".join(texts), r.choice(same), r.choice([", ".join(texts[:-1]), ", ".join([*texts[:-1], "177"]), texts[-1]])


def intervals(r: Random) -> Pair:
    low, high = r.randint(-20, 5), r.randint(6, 30)
    left, right = r.choice(["([", "[("]), r.choice([")]", "])"])
    text = f"{low},{high}"
    other = [
        f"{left[1]}{text}{right[0]}",
        f"{left[0]}{text}{right[1]}",
        f"{left[0]}{low},{high + 1}{right[0]}",
        rf"\{{{low},{high}\}}",
    ]
    return f"{left[0]}{text}{right[0]}", rf"\left{left[0]}{low}, {high}\right{right[0]}", r.choice(other)


def inequalities(r: Random) -> Pair:
    n, sign = r.randint(2, 30), r.choice(["<", ">", r"\le", r"\ge"])
    turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}[sign]
    open_ended = {"<": rf"(-\infty, {n})", ">": rf"({n}, \infty)", r"\le": rf"(-\infty, {n}]", r"\ge": rf"[{n}, \infty)"}[sign]
    same = [f"x {sign} {n}", f"{n} {turned} x", open_ended]
    return same[0], r.choice(same), r.choice([f"x {turned} {n}", f"x {sign} {n + 1}", f"x = {n}", str(n)])


def assignments(r: Random) -> Pair:
    n, x = r.randint(-99, 999), r.choice("xynkt")
    return (
        r.choice([f"{x}={n}", str(n)]),
        r.choice([f"{x} = {n}", str(n), f"{n}"]),
        r.choice([f"{x}={n + 1}", f"{x}>{n}", f"{n}{x}", f"{x}+{abs(n)}"]),
    )


def linear_equations(r: Random) -> Pair:
    a, b, c, k = r.randint(2, 9), r.randint(2, 9), r.randint(1, 30), r.randint(2, 5)
    same = [f"{a}x + {b}y = {c}", f"{b}y + {a}x = {c}", f"{k * a}x + {k * b}y = {k * c}", f"{a}x + {b}y - {c} = 0"]
    return same[0], r.choice(same), r.choice([f"{a}x + {b}y = {c + 1}", f"{a}x - {b}y = {c}", f"{a}={a}", str(c)])


def arithmetic(r: Random) -> Pair:
    """Equations between numbers, as the game of 24 asks for."""
    a, b, c = r.randint(1, 9), r.randint(1, 9), r.randint(2, 9)
    text = rf"({a}+{b})\cdot {c}={(a + b) * c}"
    same = [text, f"({a}+{b})*{c}={(a + b) * c}", rf"{c}\times({a}+{b})={(a + b) * c}"]
    return (
        text,
        r.choice(same),
        r.choice([f"{a}={a + 1}", f"{a}={a}", rf"({a}+{b})\cdot {c}={(a + b) * c + 1}", f"{c}+1={c + 1}"]),
    )


def units(r: Random) -> Pair:
    n = r.randint(2, 999)
    unit, other = r.choice([("cm", "m"), ("kg", "g"), ("hours", "minutes"), ("miles", "feet"), (r"cm^2", "cm"), ("km/h", "m/s")])
    dressed = rf"{n}\text{{ {unit}}}" if "^" not in unit else rf"{n}\text{{ cm}}^2"
    wrong = [rf"{n}\text{{ {other}}}", rf"{n + 1}\text{{ {unit.partition('^')[0]}}}", str(n + 1)]
    return (
        r.choice([dressed, str(n)]) if (bare := r.random() < 0.5) else dressed,
        r.choice([dressed, str(n)]),
        wrong[2] if bare else r.choice(wrong),
    )


def counted(r: Random) -> Pair:
    n, what = r.randint(2, 999), r.choice(["apples", "students", "boxes", "books", "marbles", "cups of tea", "square units"])
    return (
        r.choice([str(n), f"{n} {what}"]),
        r.choice([f"{n} {what}", rf"{n}\text{{ {what}}}", str(n)]),
        rf"{n + r.choice([-1, 1, 9])}\text{{ {what}}}",
    )


def degrees(r: Random) -> Pair:
    n = r.randint(1, 359)
    same = [rf"{n}^\circ", rf"{n}^{{\circ}}", str(n), f"{n}°", f"{n} degrees", rf"{n}\text{{ degrees}}"]
    return r.choice(same[:3]), r.choice(same), r.choice([rf"{n + 1}^\circ", rf"{n}\pi", rf"{n}0^\circ"])


def complex_numbers(r: Random) -> Pair:
    a, b = r.randint(1, 30), r.randint(2, 30)
    return (
        f"{a}+{b}i",
        r.choice([f"{b}i+{a}", f"{a} + {b} i", f"{a}+{b}i"]),
        r.choice([f"{a}-{b}i", f"{a + b}", f"{a}i+{b + a + 1}", str(a)]),
    )


def matrices(r: Random) -> Pair:
    a = [r.randint(-9, 9) for _ in range(4)]
    rows = rf"{a[0]} & {a[1]} \\ {a[2]} & {a[3]}"
    wrong = rf"\begin{{pmatrix}} {a[0]} & {a[1]} \\ {a[2]} & {a[3] + 1} \end{{pmatrix}}"
    return rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}", rf"\begin{{bmatrix}}{rows.replace(' ', '')}\end{{bmatrix}}", wrong


def plus_or_minus(r: Random) -> Pair:
    n = r.randint(1, 60)
    return (
        r.choice([rf"\pm {n}", f"{n}, -{n}"]),
        r.choice([rf"\pm {n}", f"-{n}, {n}", rf"x = \pm {n}"]),
        r.choice([str(n), f"-{n}", rf"\pm {n + 1}"]),
    )


def products(r: Random) -> Pair:
    a, b = r.randint(2, 12), r.randint(2, 12)
    while a * b in (a + b, 10 * a + b):
        b += 1
    same = [f"{a}({b})", rf"{a}\cdot {b}", rf"{a} \times {b}", f"({a})({b})"]
    return str(a * b), r.choice(same), r.choice([f"{a}({b + 1})", f"{a}!({b})({b})", f"{a}+{a}({b})"])


def days(r: Random) -> Pair:
    names = ["Monday", "Tuesday", "Friday", "Oslo", "Paris", "yes", "no", "True", "False", "even", "odd", "red"]
    name, other = r.sample(names, 2)
    return (
        name,
        r.choice([name, name.lower(), rf"\text{{{name}}}", name.upper()]),
        r.choice([other, f"not {name}", f"{name} or {other}"]),
    )


def choices(r: Random) -> Pair:
    letter, other = r.sample("ABCDE", 2)
    same = [letter, f"({letter})", rf"\text{{({letter})}}", rf"\textbf{{({letter})}}", f"{letter}."]
    return r.choice([letter, f"({letter})"]), r.choice(same), r.choice([f"({other})", other, rf"\text{{{other}}}"])


KINDS: Mapping[str, Callable[[Random], Pair]] = {
    kind.__name__: kind
    for kind in (
        *(
            integers,
            thousands,
            decimals,
            fractions,
            negative_fractions,
            mixed_numbers,
            percent,
            money,
            scientific,
            powers,
            radicals,
        ),
        *(
            multiples_of_pi,
            polynomials,
            tuples,
            sets,
            lists,
            intervals,
            inequalities,
            assignments,
            linear_equations,
            arithmetic,
            units,
        ),
        *(counted, degrees, complex_numbers, matrices, plus_or_minus, products, days, choices),
    )
}


def pairs(kind: str, count: int, seed: int) -> Iterator[Pair]:
    """So many pairs of a kind; the same ones for a seed, whatever other kinds there are."""
    r = Random(f"{kind}/{seed}")
    for _ in range(count):
        yield KINDS[kind](r)


def dressed(answer: str, r: Random) -> str:
    """A completion that gives an answer."""
    return r.choice(
        [
            rf"So it is \boxed{{{answer}}}.",
            rf"$\boxed{{{answer}}}$",
            rf"First 7, then 12. The final answer is: $\boxed{{{answer}}}$",
        ]
    )
