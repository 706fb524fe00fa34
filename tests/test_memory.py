"""Memory that is freed goes back to the system where a model is large."""

import subprocess
import sys

import pytest

CODE = """
import sys, torch
from neurtransformer import memory
memory.LARGE = int(sys.argv[1])
own = lambda: int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) // 1024
memory.spare(torch.nn.Linear(2, 2))
began = own()
# blocks of 16 MiB, every other one of which is freed once glibc's threshold has grown beyond them
first = torch.ones(6 * 2**20)
del first
blocks = [torch.ones(2**22) for _ in range(16)]
del blocks[::2]
print(own() - began)
"""


def held(large: int) -> int:
    """MiB that 8 of 16 blocks of 16 MiB hold when the others are freed."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(large)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and glibc's mallopt are Linux's")
def test_freed_blocks_of_a_large_model_go_back() -> None:
    assert held(large=0) < 150 < 200 < held(large=2**30)
