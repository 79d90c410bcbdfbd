"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from genpol.runs.allocator import keep_freed_memory
assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(60):
    if i == 10:
        before = faults()
    torch.ones(4_000_000 // 4).add(1)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_pages_are_not_asked_for_again():
    """Else these are 100,000, or none: glibc adapts to what was freed before, as it happens."""
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, check=True)
    assert int(done.stdout) < 2000
