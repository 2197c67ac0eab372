"""What tests of several hosts share: one rack of them, with a controller, workers and a gateway that have keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from tools.hosts import unavailable  # noqa: E402  (its folder has just been put on the path)

if TYPE_CHECKING:  # it needs torch
    from rack import Rack, Visitor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = unavailable()
    for item in items:
        if why is not None and Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    pytest.importorskip("torch")
    from rack import Rack

    with Rack(tmp_path_factory.mktemp("rack")) as rack:
        yield rack


@pytest.fixture(scope="module")
def guest(rack: Rack) -> Iterator[Visitor]:
    """A client by the way that can be made slow or broken."""
    visitor = rack.visitor()
    yield visitor
    visitor.close()
