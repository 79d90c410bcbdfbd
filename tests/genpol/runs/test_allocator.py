"""Freed memory stays with the process, or goes back at once."""

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
    done = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, check=True, timeout=120
    )
    assert int(done.stdout) < 2000


RETURNED = """
import torch
from genpol.runs.allocator import give_back_freed_memory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
torch.ones(31 << 18).add(1)  # glibc keeps blocks of up to 31 MB from here on
if {give}:
    assert give_back_freed_memory()
before = resident()
blocks = [torch.ones(1 << 18) for _ in range(64)]
del blocks[1::2]  # every other MB
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
@pytest.mark.parametrize(("give", "left"), [(False, 64), (True, 32)])
def test_blocks_between_others_go_back_where_asked(give, left):
    command = [sys.executable, "-c", RETURNED.format(give=give)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert float(done.stdout) == pytest.approx(left, abs=8)
