import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, torch
from training.memory import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
if sys.argv[1] == "keep":
    keep_freed_memory()
before = faults()
for num_mb in range(1, 31):
    torch.ones(num_mb * 2**18)  # freed at once, and larger than what glibc has learned to keep
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_is_used_again_without_a_fault() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", COUNT_FAULTS, mode], capture_output=True, check=True).stdout)
        for mode in ("keep", "as it comes")
    )
    assert kept < given_back / 3
