"""Tests against transformers; all are skipped where it or torch is missing (pip install
'qwen35[parity]').
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # reference.py, checkpoints.py

try:
    import torch
    import transformers
except ImportError:
    collect_ignore_glob = ["test_*.py"]
else:
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
