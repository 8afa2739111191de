#!/usr/bin/env bash
# math-verify 0.9.0 with sympy 1.14.0: float_rounding does not apply between a decimal and a whole number.
# Expected: with float_rounding=2, 5.001 is 5, as 5.001 is 5.0, and as the docstring says ("precision: number of decimal places").
# Seen: False, since both are rounded and sympy holds that Float(5.0) and Integer(5) differ. 12% is 12 and 12.5% is not 12.5, for the
# like reason. Exits 0 while that is so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install --quiet --disable-pip-version-check \
    math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0 antlr4-python3-runtime==4.13.2
"$place/bin/python" - <<'PYTHON'
import sys

from math_verify import parse, verify

def same(gold: str, given: str) -> bool:
    return bool(verify(parse(f"${gold}$"), parse(f"${given}$"), float_rounding=2))


seen = [same("5", "5.001"), same("5.0", "5.001"), same("12", r"12\%"), same("12.5", r"12.5\%")]
print(f"5.001 for 5, 5.001 for 5.0, 12% for 12, 12.5% for 12.5: {seen}")
sys.exit(seen != [False, True, True, False])
PYTHON
