"""Oracle: the operating system's count of resident memory. A video file is answered with memory
that does not depend on how long it is.
"""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

FPS = 10
ASK = """
import sys
import qwen35
from pathlib import Path

def resident(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))

def answer(model, path):
    part = {"type": "video", "video": path, "sample_fps": 1, "max_pixels": 1 << 20}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What moves?"}]}]
    result = model.chat(messages, temperature=0, max_tokens=8, enable_thinking=False).result()
    assert result.token_ids, result
    return model.prompt(messages).videos[0]

with qwen35.load("tiny", context=8192) as model:
    warm = answer(model, sys.argv[1])
    before = resident("VmHWM")
    seen = answer(model, sys.argv[2])
    print(resident("VmHWM") - before, *warm.grid_thw, *seen.grid_thw)
"""


def write_video(path: Path, seconds: int) -> None:
    """720p: a dark square on a slowly changing ramp."""
    import av

    ramp = np.linspace(60, 200, 1280).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for i in range(seconds * FPS):
            picture = np.repeat(np.roll(ramp, i)[None], 720, 0)
            picture = np.repeat(picture[:, :, None], 3, 2)
            picture[300:400, 10 + i : 110 + i] = 0
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """After a 20 s file, a 60 s one of the same size may add 16 MB: three times the frames would be
    110 MB of 720p pixels, and twice that as patches.
    """
    for seconds in (20, 60):
        write_video(tmp_path / f"{seconds}.mp4", seconds)
    command = [sys.executable, "-c", ASK, str(tmp_path / "20.mp4"), str(tmp_path / "60.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, *grids = map(int, done.stdout.split())
    assert (grids[0], grids[3]) == (10, 30)  # one frame a second, in pairs
    assert grown <= 16 << 20
