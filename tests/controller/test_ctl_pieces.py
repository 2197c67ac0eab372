"""What keeps Python's share short: whatever an operator asks is cut into bounded pieces, and the loop runs between them.

How long the longest piece takes is `cwd bench controller`'s to say (`python_p50_us`); here they are counted.
"""

from __future__ import annotations

import os
import signal
import threading

import pytest
from play import SECOND, WAIT_MS, Admin
from stepped import Stepped

from cwd.controller import loop
from cwd.controller.host import ADMINS, CLIENTS
from cwd.controller.host import WORKERS as WORKERS_SOCKET
from cwd.errors import Code
from cwd.net.clock import monotonic_ns
from cwd.wire.messages import Type

#: bytecodes of any piece at the most; packing the largest page is the largest, with under 3000
OPCODES_MAX = 4000
#: pieces of one page: its message, and the steps of its task, of which packing and sending are the last two
PIECES = {"model.ls": 5, "status": 7}
ROWS = {"model.ls": "models", "status": "workers"}


@pytest.fixture
def stepped(tmp_path, request):
    with Stepped(tmp_path, chunk_ns=request.param) as stepped:
        yield stepped


def _pages(stepped: Stepped, admin: Admin, verb: str) -> tuple[list[tuple[int, ...]], int]:
    """Ask for all of it: (the bytecodes of each piece, for each page; how many rows came)."""
    pages, rows, after = [], 0, 0
    while after or not pages:
        stepped.pieces.clear()
        code, result = admin.ask(verb, after=after)
        assert code == 0
        after, rows = result["next"], rows + len(result[ROWS[verb]])
        pages.append(tuple(stepped.pieces))
    return pages, rows


@pytest.mark.parametrize("stepped", [0], indirect=True)
def test_a_piece_is_as_large_with_hundreds_of_models_and_many_workers_as_with_one_page_of_them(stepped):
    admin = stepped.admin()
    found = {}
    for models, workers in ((8, 1), (8, 4), (40, 4), (400, 4), (400, 20)):
        stepped.add_models(models)
        stepped.add_workers(workers)
        _pages(stepped, admin, "status")  # what is used for the first time does more
        for verb, wanted in (("model.ls", models), ("status", workers)):
            pages, rows = _pages(stepped, admin, verb)
            assert rows == wanted
            assert {len(pieces) for pieces in pages} == {PIECES[verb]}, (verb, pages)
            found[verb, models, workers] = max(max(pieces) for pieces in pages)
    assert len({found["model.ls", *counts] for counts in ((8, 1), (8, 4), (40, 4), (400, 4), (400, 20))}) == 1, found
    assert len({found["status", *counts] for counts in ((8, 4), (40, 4), (400, 4), (400, 20))}) == 1, found
    assert found["status", 8, 1] < found["status", 8, 4] < OPCODES_MAX > found["model.ls", 8, 1], found


def _counted(admin: Admin) -> tuple[int, int]:
    """(chunks, pieces) so far, as the status says; when it is made, its own chunk is not over yet."""
    code, status = admin.ask("status")
    assert code == 0
    return status["loop"]["chunks"], status["loop"]["tasks"] + status["counters"]["rare"]


@pytest.mark.parametrize(("stepped", "each"), [(0, True), (3600 * SECOND, False)], indirect=["stepped"])
def test_with_no_time_for_python_each_chunk_is_one_piece(stepped, each):
    """And with all the time in the world everything that is there makes one chunk: it is `chunk` that decides."""
    stepped.add_models(40)
    admin = stepped.admin()
    chunks, pieces = _counted(admin)
    slices = stepped.controller.python["slices"]
    for _ in range(10):
        assert admin.ask("model.ls", after=0)[0] == 0
    more_chunks, more_pieces = _counted(admin)
    more_pieces -= pieces
    assert more_pieces == 10 * PIECES["model.ls"] + PIECES["status"]
    assert more_chunks - chunks == (more_pieces if each else 11)
    assert stepped.controller.python["slices"] - slices >= more_chunks - chunks, "a slice of the loop before each"


@pytest.mark.parametrize("stepped", [0], indirect=True)
def test_a_signal_ends_a_slice_that_would_go_on_for_a_minute(stepped):
    before = signal.signal(signal.SIGUSR1, stepped.controller.stop)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        until_ns = monotonic_ns() + 60 * SECOND
        while stepped.controller._stops == 0 and monotonic_ns() < until_ns:
            why = loop.run(stepped.controller.host, stepped.controller.world, until_ns)
        assert (why, stepped.controller._stops) == (loop.SIGNAL, 1)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("stepped", [0], indirect=True)
def test_requests_are_answered_between_the_pieces_of_a_listing(stepped):
    """A request is on its worker before the piece behind it is done, and answered before the next but one."""
    stepped.add_models(40)
    worker, client, admin = stepped.worker(), stepped.client(), stepped.admin()
    model = client.lookup("fixed-0")
    first = client.infer(model, slo_ns=10 * SECOND)
    worker.serve_one()
    assert client.reply(first)[0]["status"] == Code.OK
    stepped.pieces.clear()
    admin.send(Type.ADMIN, request=1, verb="model.ls", args={})
    stepped.wait_for(ADMINS)
    done = []
    for _ in range(3):
        request = client.infer(model, slo_ns=10 * SECOND)
        stepped.wait_for(CLIENTS)
        stepped.controller.step()
        done.append(len(stepped.pieces))
        assert worker.socket.poll(WAIT_MS), "it is not on its worker"
        worker.serve_one()
        stepped.wait_for(WORKERS_SOCKET)
        stepped.controller.step()
        done.append(len(stepped.pieces))
        assert client.socket.poll(WAIT_MS), "it is not answered"
        assert client.reply(request)[0]["status"] == Code.OK
    assert done == [1, 2, 3, 4, 5, 5] and PIECES["model.ls"] == 5
    fields, _ = admin.until(Type.ADMIN_REPLY, request=1)
    assert len(fields["result"]["models"]) == 8 and len(stepped.pieces) == 5
