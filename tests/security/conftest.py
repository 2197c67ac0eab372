"""One controller that asks for keys, shared by those tests that leave it as they found it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "controller")]

import play  # noqa: E402  (its folder has just been put on the path)
from guarded import Guarded  # noqa: E402


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    root = tmp_path_factory.mktemp("guarded")
    play.make_repository(root / "repo")
    with Guarded(root, repository=str(root / "repo")) as controller:
        yield controller
