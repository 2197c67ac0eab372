"""What runs on a GPU is type-checked, since a machine without one runs none of it; and it is imported only where it is used.

So is what programs of users import: the client and what stands on it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKED = {"backends": ("cwd/worker/backends", "cwd/worker/measure.py", "cwd/worker/device.py"),
           "clients": ("cwd/__init__.py", "cwd/client", "cwd/selection", "cwd/gateway")}


@pytest.mark.parametrize("what, needed", [("backends", "torch"), ("clients", "starlette")])
def test_types(what, needed):
    pytest.importorskip("mypy")
    pytest.importorskip(needed)
    found = subprocess.run([sys.executable, "-m", "mypy", "--follow-imports=silent", *CHECKED[what]], cwd=ROOT, text=True,
                           capture_output=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_nothing_of_cuda_is_imported_for_another_device():
    code = ("import sys; from cwd.worker import daemon, host, measure; from cwd.worker.backends import cpu, paged; "
            "assert 'cwd.worker.backends.cuda' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
