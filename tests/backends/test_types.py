"""What runs on a GPU is type-checked, since a machine without one runs none of it; and it is imported only where it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKED = ("cwd/worker/backends", "cwd/worker/measure.py", "cwd/worker/device.py")


def test_the_backends_are_type_checked():
    pytest.importorskip("mypy")
    pytest.importorskip("torch")
    found = subprocess.run([sys.executable, "-m", "mypy", "--follow-imports=silent", *CHECKED], cwd=ROOT, text=True,
                           capture_output=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_nothing_of_cuda_is_imported_for_another_device():
    code = ("import sys; from cwd.worker import daemon, host, measure; from cwd.worker.backends import cpu, paged; "
            "assert 'cwd.worker.backends.cuda' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
