from __future__ import annotations
from pathlib import Path
from pipeline.audit.audit import audit

def test_an_untouched_run_is_sound(made: Path) -> None:
    import time
    for _ in range(5):
        t=time.time(); found = audit(made); print(time.time()-t, len(found.held), found.bytes)
    for f in found.findings: print(f)
    for c in found.counts: print(c)
    assert found.status == 0
    t=time.time(); found = audit(made, deep=True, samples=0, steps=99); print(time.time()-t)
    for f in found.findings: print(f)
    for c in found.counts: print(c)
    for c in found.distributions: print(c)
    for c in found.figures: print(c)
    assert found.status == 0
