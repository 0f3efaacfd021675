import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def take_and_free():
    for _ in range(10):
        several = [torch.ones(2**22) for _ in range(10)]  # of 16 MB; together more than glibc keeps by itself
        del several
take_and_free()
before = faults()
take_and_free()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_is_used_again_without_a_fault() -> None:
    counted = {
        mode: int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, check=True).stdout)
        for mode in ("as it comes", "keep")
    }
    assert counted["keep"] < 1000 < counted["as it comes"]
