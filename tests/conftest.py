"""Fixtures shared by the tests; hypothesis runs few examples unless QWEN35_FUZZ asks for more.

QWEN35_FUZZ=100000 python -m pytest tests/test_safetensors_file.py -k fuzz
"""

import os
import signal
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from hypothesis import HealthCheck, settings

# A shell starts background jobs with SIGINT ignored, and children would inherit that: the tests of
# Ctrl-C need it heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "default",
    max_examples=int(os.environ.get("QWEN35_FUZZ", "100")),
    deadline=None,  # no test depends on time
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in the released layout, one file, bfloat16. Shared: do not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint of one file, to be spoilt."""
    return write_checkpoint(tmp_path / "model", tokenizer=False)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A good checkpoint of three shards, to be spoilt."""
    return write_checkpoint(tmp_path / "model", tokenizer=False, shards=3)
