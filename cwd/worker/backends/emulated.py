"""Hundreds of emulated GPUs in one nopython loop: the agenda, the pages and the wire are real, the work is waiting.

An EXEC takes what the program's stored profile says for its batch and size class, a LOAD what the emulated bus needs or,
without a bus, the profile says; all with seeded noise. Without a profile they take what the controller expects, which with
noise creeps upwards, as it expects the slowest that it saw. Outputs are frames of zeros, as long as outputs of the request's
sizes are. The Python half, which makes connections and reads profiles, is emulated_host.py.
"""

from __future__ import annotations

import platform

import numpy as np

from cwd.errors import Code
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import I4, I8, external, load_i4
from cwd.net.wake import timerfd_arm, timerfd_clear
from cwd.net.zmq import DONTWAIT, SNDMORE, message, message_data, message_table, send_bytes
from cwd.tables import Tables
from cwd.wire.kernel import TYPE_EXEC, TYPE_LOAD, TYPE_PROFILE, TYPE_UNLOAD
from cwd.wire.memory import array_address
from cwd.worker import agenda as ag
from cwd.worker import link as ln
from cwd.worker import residency as rs
from cwd.worker import rules

OK = int(Code.OK)
TOO_LATE = int(Code.TOO_LATE)
ABANDONED = int(Code.ABANDONED)
LANE_FULL = int(Code.LANE_FULL)
EXEC_LANE, LOAD_LANE = 0, 1

#: What `emulated_run` returns for: Python must look at the message, greet, reconnect, or stop.
RARE, GREET, LOST, WAKE = 1, 2, 3, 4

PROGRAMS_MAX, BATCHES_MAX, CLASSES_MAX = 4096, 16, 16
#: of the formula of a program's output bytes; sizes of a request's axes
TERMS_MAX, DIMS = 8, 4
#: waiting EXECs of the largest batch whose requests' sizes a device can keep; with more its lane is full
_WAITING_BATCHES = 32
#: File descriptors of sockets must be below.
FDS_MAX = 1 << 16
_EVENTS_MAX = 256
#: struct epoll_event, which is packed on x86-64 alone: its size, and where Python's select.epoll puts the descriptor
_EVENT_BYTES, _EVENT_DATA = (12, 4) if platform.machine() == "x86_64" else (16, 8)
epoll_wait = external("epoll_wait", I4, I4, I8, I4, I4)

#: Messages taken from one connection before the others get their turn.
_TURN_MESSAGES = 32

COUNTS = np.dtype([("random", "i8"), ("noise_ppm", "i8"), ("load_bytes_per_s", "i8"), ("page_bytes", "i8"),
                   ("out_bytes", "i8"), ("rows_max", "i8"), ("turn", "i8"), ("timer_ns", "i8"), ("order", "i8"),
                   ("turn_ns", "i8"), ("executed", "i8")],
                  align=True)


class Emulated(Tables):
    """All state of n devices; lane 2g executes, lane 2g + 1 loads for device g."""

    links: np.ndarray  # LINK [n]
    scratch: ln.Scratch
    message: np.ndarray  # one message: payloads are not looked at
    action: np.ndarray  # ACTION [1], the one that was just read
    taken: np.ndarray  # ACTION [1], the one that just left the agenda
    agenda: ag.Agenda  # 2n lanes
    residency: rs.Residency  # n devices
    running: np.ndarray  # ACTION [2n]
    begin_ns: np.ndarray  # i8 [2n]
    finish_ns: np.ndarray  # i8 [2n]: when what runs ends, NEVER where nothing runs
    look_ns: np.ndarray  # i8 [2n]: when the lane must be looked at
    status: np.ndarray  # i8 [2n]: what the running action will answer
    resident: np.ndarray  # i8 [2n]: of the running action, -1 none
    numbers: np.ndarray  # i4 [n, PROGRAMS_MAX]: the controller's program_index -> row of the tables below, -1 unknown
    durations_ns: np.ndarray  # i8 [PROGRAMS_MAX, BATCHES_MAX, CLASSES_MAX]: 0 unknown
    batches: np.ndarray  # i4 [PROGRAMS_MAX, BATCHES_MAX]
    load_page_ns: np.ndarray  # i8 [PROGRAMS_MAX]: a page's LOAD, 0 unknown
    n_terms: np.ndarray  # i8 [PROGRAMS_MAX]: -1 unknown
    coefficients: np.ndarray  # i8 [PROGRAMS_MAX, TERMS_MAX]: output bytes = sum of coefficient * prod(dims ** exponents)
    exponents: np.ndarray  # i8 [PROGRAMS_MAX, TERMS_MAX, DIMS]
    dims: np.ndarray  # u4 [n, rows, DIMS]: sizes of the requests of the EXECs that wait or run, a ring per device
    dims_next: np.ndarray  # i8 [n]: where the next EXEC's rows go
    dims_used: np.ndarray  # i8 [n]
    output: np.ndarray  # u1: zeros, as long as the longest frame
    next_ns: np.ndarray  # i8 [n]: when the device must be looked at
    dirty: np.ndarray  # u1 [n]: 1 if its socket must be read until it is empty
    device_of: np.ndarray  # i4 [FDS_MAX]: which device's socket a file descriptor belongs to, -1 none
    events: np.ndarray  # u1: what epoll found
    counts: np.ndarray  # COUNTS [1]


def make_emulated(n: int, pages: int, agenda_max: int, rows_max: int) -> Emulated:
    """State of n devices of `pages` pages each, without connections."""
    lanes = 2 * n
    state = Emulated(
        links=np.zeros(n, ln.LINK), scratch=ln.make_scratch(), message=message_table(1),
        action=np.zeros(1, ag.ACTION), taken=np.zeros(1, ag.ACTION), agenda=ag.make_agenda(lanes, agenda_max),
        residency=rs.make_residency(n, pages), running=np.zeros(lanes, ag.ACTION), begin_ns=np.zeros(lanes, np.int64),
        finish_ns=np.full(lanes, ag.NEVER, np.int64), look_ns=np.full(lanes, ag.NEVER, np.int64),
        status=np.zeros(lanes, np.int64), resident=np.full(lanes, -1, np.int64),
        numbers=np.full((n, PROGRAMS_MAX), -1, np.int32),
        durations_ns=np.zeros((PROGRAMS_MAX, BATCHES_MAX, CLASSES_MAX), np.int64),
        batches=np.zeros((PROGRAMS_MAX, BATCHES_MAX), np.int32),
        load_page_ns=np.zeros(PROGRAMS_MAX, np.int64),
        n_terms=np.full(PROGRAMS_MAX, -1, np.int64), coefficients=np.zeros((PROGRAMS_MAX, TERMS_MAX), np.int64),
        exponents=np.zeros((PROGRAMS_MAX, TERMS_MAX, DIMS), np.int64),
        dims=np.zeros((n, _WAITING_BATCHES * rows_max, DIMS), np.uint32), dims_next=np.zeros(n, np.int64),
        dims_used=np.zeros(n, np.int64), output=np.zeros(1, np.uint8),
        next_ns=np.zeros(n, np.int64), dirty=np.zeros(n, np.uint8), device_of=np.full(FDS_MAX, -1, np.int32),
        events=np.zeros(_EVENTS_MAX * _EVENT_BYTES, np.uint8), counts=np.zeros(1, COUNTS))
    state.counts["timer_ns"] = ag.NEVER
    state.counts["random"], state.counts["order"], state.counts["rows_max"] = 1, -1, rows_max
    return state


@lean_kernel
def emulated_run(state, epoll_fd, wake_fd, timer_fd):
    """Serve all devices until Python is needed: (what, device). RARE leaves the message in `state.message`.

    Python may have put an action into `state.action`, for the device counts["order"]; and it sets `dirty` and `next_ns`
    of a device whose socket or link it has touched. A turn costs what is ready, not what there is: libzmq's own poll
    would ask every socket.
    """
    counts = state.counts[0]
    if counts["order"] >= 0:
        ordered = np.int64(counts["order"])
        counts["order"] = -1
        state.dirty[ordered] = 1
        _accept(state, ordered, state.action[0], monotonic_ns())
    while True:
        dirty = _arm(state, timer_fd)
        found = epoll_wait(epoll_fd, array_address(state.events), _EVENTS_MAX, 0 if dirty else -1)
        if found < 0:
            return WAKE, np.int64(0)  # a signal
        began_ns = monotonic_ns()
        if _mark(state, found, wake_fd, timer_fd):
            return WAKE, np.int64(0)
        what, device = _turn(state, began_ns)
        if what != 0:
            return what, device
        counts["turn_ns"] = monotonic_ns() - began_ns


@inner_kernel
def _arm(state, timer_fd):
    """Set the timer to the earliest thing to do; True if some socket is not known to be empty."""
    when_ns = np.int64(ag.NEVER)
    dirty = False
    for device in range(len(state.next_ns)):
        when_ns = min(when_ns, state.next_ns[device])
        dirty = dirty or state.dirty[device] != 0
    if when_ns != state.counts[0]["timer_ns"]:  # (an armed timer need not be set again)
        state.counts[0]["timer_ns"] = when_ns
        timerfd_arm(timer_fd, max(when_ns, 1))
    return dirty


@inner_kernel
def _mark(state, found, wake_fd, timer_fd):
    """Note which devices' sockets have something; True if Python was woken."""
    wake = False
    for k in range(found):
        fd = load_i4(array_address(state.events) + k * _EVENT_BYTES + _EVENT_DATA)
        if fd == wake_fd:
            wake = True
        elif fd == timer_fd:
            timerfd_clear(timer_fd)
            state.counts[0]["timer_ns"] = ag.NEVER
        elif 0 <= fd < FDS_MAX and state.device_of[fd] >= 0:
            state.dirty[state.device_of[fd]] = 1
    return wake


@inner_kernel
def _turn(state, now_ns):
    """Serve every device that has something to do: (what Python must do or 0, device)."""
    counts, n = state.counts[0], len(state.links)
    for _ in range(n):  # begin with another device each time, so that a RARE return starves nobody
        device = np.int64(counts["turn"])
        counts["turn"] = device + 1 if device + 1 < n else 0
        if state.dirty[device] == 0 and state.next_ns[device] > now_ns:
            continue
        what = _device_due(state, device, now_ns)
        if what == 0:
            what = _read(state, device)
        state.next_ns[device] = min(
            state.look_ns[2 * device], state.look_ns[2 * device + 1], ln.link_timer(state.links[device]))
        if what != 0:
            return what, device
    return np.int64(0), np.int64(0)


@inner_kernel
def _device_due(state, device, now_ns):
    """Do what time asks of one device; what Python must do, or 0."""
    for lane in (2 * device, 2 * device + 1):
        if state.look_ns[lane] <= now_ns:
            _step(state, device, lane, now_ns)
    link = state.links[device]
    if ln.link_timer(link) <= now_ns:
        what = ln.link_due(link, state.scratch, now_ns)
        if what == ln.RARE:
            return GREET
        if what == ln.LOST:
            return LOST
    return 0


@inner_kernel
def _read(state, device):
    """Read one connection until it is empty, for a while; what Python must do, or 0.

    Also after sending: libzmq may take the signal of a message that came meanwhile, and then says nothing more.
    """
    link, action, counts = state.links[device], state.action[0], state.counts[0]
    state.dirty[device] = 1
    for _ in range(_TURN_MESSAGES):
        link["loop_max_ns"] = max(link["loop_max_ns"], counts["turn_ns"])
        what, frames = ln.link_read(link, state.scratch, state.message, 0, 1, action)
        if what == ln.NOTHING:
            state.dirty[device] = 0
            return 0
        if what == ln.LOST:
            return LOST
        if what == ln.RARE:
            return RARE
        if what == ln.ACTION:
            _accept(state, device, action, np.int64(action["received_ns"]))
    return 0


@inner_kernel
def _accept(state, device, action, now_ns):
    """Queue an action that was received, or answer it at once."""
    link = state.links[device]
    if action["epoch"] != link["epoch"]:
        ln.link_refuse(link, state.scratch, action, ABANDONED, rs.pages_free(state.residency, device))
        return
    load = action["kind"] == TYPE_LOAD or action["kind"] == TYPE_UNLOAD
    lane = 2 * device + (LOAD_LANE if load else EXEC_LANE)
    code = LANE_FULL
    if _keep_dims(state, device, action):
        code = ag.agenda_push(state.agenda, lane, action)
        if code != OK:
            state.dims_next[device] = action["entry"]
            state.dims_used[device] -= _kept(state, action)
    if code != OK:
        ln.link_refuse(link, state.scratch, action, code, rs.pages_free(state.residency, device))
        return
    link["queued"] += 1
    _step(state, device, lane, now_ns)


@inner_kernel
def _kept(state, action):
    """How many rows of an action have their sizes in the ring: an EXEC of too many, or of a wrong number, has none."""
    rows = np.int64(action["rows"])
    return rows if action["kind"] == TYPE_EXEC and 0 < rows <= state.counts[0]["rows_max"] else np.int64(0)


@inner_kernel
def _keep_dims(state, device, action):
    """Note the sizes of an EXEC's requests: its frame is gone when it runs. False if there is no room.

    `entry` is where they begin. EXECs leave their lane in the order in which they came, so a ring is enough.
    """
    ring = state.dims[device]
    rows, at = _kept(state, action), state.dims_next[device]
    if state.dims_used[device] + rows > len(ring):
        return False
    action["entry"] = at
    address = message_data(message(state.message, 0)) + np.int64(action["rows_at"]) if rows > 0 else np.int64(0)
    for row in range(rows):
        for k in range(DIMS):
            ring[at, k] = load_i4(address + 16 * row + 4 * k)
        at = at + 1 if at + 1 < len(ring) else 0
    state.dims_next[device] = at
    state.dims_used[device] += rows
    return True


@inner_kernel
def _step(state, device, lane, now_ns):
    """End what is over and start what may start, in one lane; and say when to look again."""
    link, taken = state.links[device], state.taken[0]
    while True:
        if state.finish_ns[lane] <= now_ns:
            _finish(state, device, lane)
        verdict, until_ns = ag.agenda_next(state.agenda, lane, now_ns, taken)
        if verdict == ag.START:
            link["queued"] -= 1
            ag.copy_action(taken, state.running[lane])
            _begin(state, device, lane, now_ns)
            if state.finish_ns[lane] > now_ns:
                break
        elif verdict == ag.REFUSE or verdict == ag.DROP:
            link["queued"] -= 1
            state.dims_used[device] -= _kept(state, taken)
            if verdict == ag.REFUSE:
                ln.link_refuse(link, state.scratch, taken, TOO_LATE, rs.pages_free(state.residency, device))
        else:
            break
    state.look_ns[lane] = min(state.finish_ns[lane], until_ns)


@inner_kernel
def _begin(state, device, lane, now_ns):
    """The running action begins: what will it answer, and when?"""
    action = state.running[lane]
    kind = action["kind"]
    state.begin_ns[lane] = now_ns
    state.resident[lane] = -1
    status, duration_ns = OK, np.int64(0)
    if kind == TYPE_LOAD:
        status, duration_ns = _begin_load(state, device, lane, action)
    elif kind == TYPE_UNLOAD:
        exec_lane = 2 * device + EXEC_LANE
        status, index, duration_ns = rules.begin_unload(
            state.residency, device, state.agenda, exec_lane, state.finish_ns[exec_lane], action, now_ns)
        state.resident[lane] = index
    elif kind == TYPE_EXEC or kind == TYPE_PROFILE:
        status, duration_ns = _begin_exec(state, device, action)
    else:
        duration_ns = np.int64(0)  # a PREPARE: every program counts as built
    state.status[lane] = status
    if status == OK and kind != TYPE_UNLOAD:
        duration_ns = _noisy(state, duration_ns)
    state.finish_ns[lane] = now_ns + duration_ns


@inner_kernel
def _begin_load(state, device, lane, action):
    """(status, duration) of a LOAD; an adopted orphan takes no time."""
    counts, program = state.counts[0], action["program"]
    known = 0 <= program < PROGRAMS_MAX
    number = np.int64(state.numbers[device, program]) if known else np.int64(-1)
    status, index, copying = rules.begin_load(state.residency, device, action, number)
    state.resident[lane] = index
    if not copying:
        return status, np.int64(0)
    if counts["load_bytes_per_s"] > 0:
        pages = action["pages"]
        return OK, np.int64(pages * counts["page_bytes"] * 1000 // max(counts["load_bytes_per_s"] // 1_000_000, 1))
    page_ns = state.load_page_ns[number] if number >= 0 else np.int64(0)
    return OK, np.int64(action["pages"]) * page_ns if page_ns > 0 else np.int64(action["expected_ns"])


@inner_kernel
def _begin_exec(state, device, action):
    """(status, duration) of an EXEC, or of a PROFILE, which is `repeats` of them."""
    profiling = action["kind"] == TYPE_PROFILE
    status, program = rules.begin_exec(state.residency, device, action, state.counts[0]["rows_max"], profiling)
    if status != OK:
        return status, np.int64(0)
    action["program"] = program
    once_ns = _profiled(state, program, action["batch"], action["size_class"])
    if once_ns == 0:
        return OK, np.int64(action["expected_ns"])
    return OK, once_ns * max(np.int64(action["repeats"]), 1) if profiling else once_ns


@inner_kernel
def _profiled(state, program, batch, size_class):
    """What the stored profile says of an execution, 0 if it says nothing."""
    if 0 <= program < PROGRAMS_MAX and 0 <= size_class < CLASSES_MAX:
        for k in range(BATCHES_MAX):
            if state.batches[program, k] == batch:
                return state.durations_ns[program, k, size_class]
    return np.int64(0)


@inner_kernel
def _noisy(state, duration_ns):
    """The duration times 1 + u, u uniform in +- noise_ppm millionths: seeded, so that a run can be repeated."""
    counts = state.counts[0]
    if counts["noise_ppm"] == 0 or duration_ns == 0:
        return duration_ns
    x = np.int64(counts["random"])
    x ^= (x << 13)
    x ^= (x >> 7) & 0x1FFFFFFFFFFFFFF
    x ^= (x << 17)
    counts["random"] = x
    ppm = ((x >> 20) & 0xFFFFFF) % (2 * counts["noise_ppm"] + 1) - counts["noise_ppm"]
    return max(duration_ns + duration_ns * ppm // 1_000_000, np.int64(0))


@inner_kernel
def _finish(state, device, lane):
    """The running action is over: settle its pages and send its result, unless its session is over too."""
    action, link = state.running[lane], state.links[device]
    status, index = state.status[lane], state.resident[lane]
    begin_ns, end_ns = state.begin_ns[lane], state.finish_ns[lane]
    if status == OK and action["kind"] == TYPE_LOAD:
        rules.end_load(state.residency, device, index)
    elif status == OK and action["kind"] == TYPE_UNLOAD:
        rules.end_unload(state.residency, device, index)
    ag.agenda_done(state.agenda, lane)
    state.finish_ns[lane] = ag.NEVER
    state.dims_used[device] -= _kept(state, action)
    if action["session"] != link["session"] or link["state"] != ln.OPEN:
        return
    device_ns = end_ns - begin_ns if status == OK else 0
    rows = np.int64(action["rows"]) if status == OK and action["kind"] == TYPE_EXEC else np.int64(0)
    state.counts[0]["executed"] += np.int64(rows > 0)
    if ln.link_answer(
            link, state.scratch, action["kind"], action["action"], action["epoch"], action["received_ns"], status,
            begin_ns, end_ns, device_ns, rs.pages_free(state.residency, device), rows):
        _send_outputs(state, device, action, rows)


@inner_kernel
def _output_bytes(state, program, dims):
    """Bytes of a request's outputs, of sizes `dims`; never more than there are zeros to send."""
    if program < 0 or program >= PROGRAMS_MAX or state.n_terms[program] < 0:
        return np.int64(state.counts[0]["out_bytes"])
    size = np.int64(0)
    for t in range(state.n_terms[program]):
        term = state.coefficients[program, t]
        for k in range(DIMS):
            for _ in range(state.exponents[program, t, k]):
                term *= np.int64(dims[k])
        size += term
    return np.int64(min(max(size, 0), len(state.output)))


@inner_kernel
def _send_outputs(state, device, action, rows):
    """Send an EXEC's output frames: zeros."""
    link, ring, at = state.links[device], state.dims[device], np.int64(action["entry"])
    program = np.int64(action["program"])
    address = array_address(state.output)
    for row in range(rows):
        flags = DONTWAIT | SNDMORE if row + 1 < rows else DONTWAIT
        size = _output_bytes(state, program, ring[at])
        at = at + 1 if at + 1 < len(ring) else 0
        if send_bytes(link["socket"], address, size, flags) < 0:
            link["broken"] = 1
            return
