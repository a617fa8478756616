"""How fast this machine reads memory just now: the limit of decoding, which reads every weight.

Dot products by NumPy's BLAS do nothing but read. They run in a process of their own, whose BLAS
leaves the threads to us: `python -m qwen35.bandwidth THREADS` prints bytes a second.
"""

import os
import subprocess
import sys
import threading
import time

TOTAL_BYTES = 256 << 20  # of all threads together: beyond any cache
LEAST_BYTES = 32 << 20  # of each
RUNS = 7


def read_bandwidth(threads: int) -> float | None:
    """Bytes a second that `threads` threads read together, the best of some runs; None where no
    second Python can be started.
    """
    command = [sys.executable, "-m", __spec__.name, str(threads)]
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def measure(threads: int) -> float:
    """The same in this process, whose BLAS must be single-threaded."""
    import numpy as np

    each = max(TOTAL_BYTES // threads, LEAST_BYTES)
    arrays = [np.ones((2, each // 8), np.float32) for _ in range(threads)]
    seconds = []
    for _ in range(RUNS):
        team = [threading.Thread(target=np.dot, args=tuple(x)) for x in arrays]
        start = time.perf_counter()
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()
        seconds.append(time.perf_counter() - start)
    return threads * each / min(seconds)


if __name__ == "__main__":
    print(measure(int(sys.argv[1])))
