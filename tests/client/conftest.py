"""Fixtures of the client's tests."""

import pytest
from fake_controller import FakeController


@pytest.fixture
def controller(tmp_path):
    fake = FakeController(tmp_path / "c.sock")
    yield fake
    fake.stop()
