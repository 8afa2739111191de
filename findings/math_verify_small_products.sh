#!/usr/bin/env bash
# math-verify 0.9.0: two products below about 1e-15 are equal, whatever they are; plain decimals and larger products are not.
# Expected: the mass of an electron in kg is not its charge in coulombs. Seen: verify is True.
# (Products are compared by the difference to 15 digits, with what is small chopped to 0.) Exits 0 while that is so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install --quiet --disable-pip-version-check \
    math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0 antlr4-python3-runtime==4.13.2
"$place/bin/python" - <<'PYTHON'
import sys

from math_verify import parse, verify

small = verify(parse(r"$9.1\times10^{-31}$"), parse(r"$1.6\times10^{-19}$"))
large = verify(parse(r"$9.1\times10^{-3}$"), parse(r"$1.6\times10^{-1}$"))
print(f"1.6e-19 for 9.1e-31 as products: {small}; 1.6e-1 for 9.1e-3: {large}")
sys.exit((small, large) != (True, False))
PYTHON
