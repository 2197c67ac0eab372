"""Controllers for the tests: one shared by those that leave it as they found it, and new ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import play  # noqa: E402  (its folder has just been put on the path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[play.Controller]:
    """A controller with 4 fixed and 1 dynamic model, a credit of 8, and no worker."""
    root = tmp_path_factory.mktemp("served")
    play.make_repository(root / "repo")
    with play.Controller(root, repository=str(root / "repo"), credits=8, slo_max_ns=20 * play.SECOND) as controller:
        yield controller


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., play.Controller]]:
    """A function that starts a controller on a repository of `models` fixed models."""
    running: list[play.Controller] = []

    def start(models: int = 3, dynamic: int = 0, **settings: object) -> play.Controller:
        play.make_repository(tmp_path / "repo", models, dynamic)
        controller = play.Controller(tmp_path, repository=str(tmp_path / "repo"), **settings)
        running.append(controller)
        controller.start()
        return controller

    yield start
    for controller in running:
        controller.__exit__()
