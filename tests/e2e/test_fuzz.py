"""The fuzzer of tools/fuzz_controller.py, briefly: the controller survives, serves on and does not grow."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def fuzzer():
    path = Path(__file__).resolve().parents[2] / "tools" / "fuzz_controller.py"
    spec = importlib.util.spec_from_file_location("fuzz_controller", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_twenty_thousand_messages(fuzzer):
    facts = fuzzer.fuzz(20_000, seed=7)
    assert facts["ok"], facts["faults"]
    counted = facts["counters"]
    # it did get through: every kind of fault was met and answered, and requests were accepted among them
    assert facts["said"]["ERROR"] > 100 and facts["said"]["REPLY"] > 100 and facts["said"]["WELCOME"] > 10
    assert counted["malformed"] > 1000 and counted["not_introduced"] > 1000 and counted["stale_epoch"] > 100
    # the good client may have one under way
    assert counted["infer"] > counted["refused"] and facts["held_bytes"] <= 64 and facts["in_flight"] <= 1
    assert all(facts["made"][kind] > 0 for kind in ("random", "bits", "truncated", "version", "type", "frames",
                                                    "many frames", "oversized", "longer", "sound"))


def test_the_same_seed_makes_the_same_messages(fuzzer):
    def made(seed):
        forge = fuzzer.Forge(seed, 5, [1 << 32])
        peer = fuzzer.Peer(None, "", "clients")
        for _ in range(300):
            forge.message(peer)
        return dict(forge.made), forge.requests

    assert made(1) == made(1) != made(2)
