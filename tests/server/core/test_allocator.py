"""Memory that was freed goes back to the system."""

import subprocess
import sys

import pytest

CHILD = """
import threading, psutil
from server import allocator
assert allocator.keep_little()

def work():
    kept = []
    for number in range(400):
        kept.append(b"x" * (1000, 50_000, 300_000, 3_000_000)[number * 7 % 4])
        if len(kept) > 20:
            del kept[number % 20]

for _ in range(2):
    before = psutil.Process().memory_info().rss
    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print((psutil.Process().memory_info().rss - before) / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the options are glibc's")
def test_sixteen_threads_that_end_leave_nothing_behind():
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20
