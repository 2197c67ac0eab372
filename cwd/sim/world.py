"""The simulated world: the core's world, and around it the truth that the core does not see.

Clients' requests on their way (events), calls that the controller has not answered, messages between controller and
GPUs, the GPUs' own agendas and pages, and what is counted. Fixed tables like the core's; free rows are linked through
`next`. What changes a table is in the file of its noun; this one knows the layout alone.
"""

from __future__ import annotations

import numpy as np

from cwd.core.world import World
from cwd.sim.rows import Notes
from cwd.tables import Tables
from cwd.worker import agenda as ag
from cwd.worker import residency as rs

#: streams of chance; then one per GPU, then one per source
STREAM_CLIENTS, STREAM_FAULTS, STREAM_NETWORK, STREAMS_FIXED = 0, 1, 2, 3

# kinds of event: a request reaches the controller, an action reaches its GPU, a result reaches the controller, a fault
# begins or ends, the controller learns that a GPU is lost, or back
EVENT_REQUEST, EVENT_ACTION, EVENT_RESULT, EVENT_FAULT, EVENT_LOST, EVENT_JOINED = 1, 2, 3, 4, 5, 6

# kinds of source
SOURCE_POISSON, SOURCE_MMPP, SOURCE_TRACE, SOURCE_BURST, SOURCE_CLOSED, SOURCE_MINUTES, SOURCE_GAMMA = 1, 2, 3, 4, 5, 6, 7

#: buckets of the latency histogram: 2**HISTOGRAM_BITS per doubling, so within 1.6 %
HISTOGRAM_BITS = 6
HISTOGRAM_BUCKETS = 64 << HISTOGRAM_BITS

# what stops a run; checks.py has the sentences
(BROKEN_CORE, EVENTS_FULL, CALLS_FULL, MESSAGES_FULL, REPLY_TWICE, REPLY_WRONG, REPLY_LATE, REPLY_WITHOUT_RESULT,
 PAYLOAD_DROPPED, RESULT_TWICE, ACTION_AGAIN, ACTION_WRONG, ACTION_ENDED_TWICE, EXEC_WITHOUT_WEIGHTS, REFUSED_ACTION,
 TRUTH_CALLS, TRUTH_PAGES, TRUTH_COPIES, TRUTH_MESSAGES) = range(1, 20)


def _table(fields: str) -> np.dtype:
    return np.dtype([(name, np.int64) for name in fields.split()], align=True)


#: in the heap by (at_ns, sequence)
EVENT = _table("at_ns sequence kind a b c")
#: a client's request; its row is the core's handle of the payload. loops: 1 if the client sends another when it is
#: answered; stretch: what its data makes of its execution (hidden.py), which nobody sees
CALL = _table("next loops source model sent_ns first_ns deadline_ns client request_id tries app stretch")
#: an action on its way there, on the GPU, or its result on its way back; its row is the core's handle of the outputs;
#: stretch: the largest of its requests
MESSAGE = _table(
    "next state gpu life action verb model program pages batch size_class rows earliest_ns latest_ns expected_ns "
    "status begin_ns end_ns pages_free stretch"
)
MESSAGE_FREE, MESSAGE_OUT, MESSAGE_ON_GPU, MESSAGE_BACK, MESSAGE_HELD = 0, 1, 2, 3, 4
#: what the truth knows of each of the core's action slots: the last id issued there, and whether a result settled it
ISSUED = _table("action settled")
#: life: counts losses, so that what was sent before is known as old; told: the controller counts on the GPU
#: heard_ns, told_ns: when the last message on the way to and from it arrives (connections keep the order)
#: stuck_ns: added to results; the *_ppm and slow_permille are faults, 0 and 1000 when there are none
SIM_GPU = _table(
    "life up told clock_error_ns heard_ns told_ns slow_permille lost_ppm undelivered_ppm failed_ppm late_ns pages"
)
#: what runs in a lane: look_ns is in the heap of timers
SIM_LANE = _table("message begin_ns finish_ns status resident")
#: model, models: the requests are for one of `models` models from `model` on; group: for statistics, and the client
#: state: of MMPP (0, 1), of a trace or burst (position); tries_max: how often a refused request is issued again
#: mode, modes: what its requests are, from that mode on, 0: all alike; gaps: its table of gaps
SOURCE = _table(
    "kind model models group slo_ns size_class mean_ns mean2_ns dwell_ns dwell2_ns state switch_ns period_ns count gap_ns "
    "position start_ns stop_ns in_flight tries_max heard_ns next_ns scaled mode modes gaps"
)
FAULT = _table("kind gpu source until_ns value value2 program pages")
GROUP = _table("batch offered attempts on_time late refused failed answered cold latency_max_ns")
#: of models: what was answered, and what of it in time
SERVED = _table("answered on_time")
STATE = _table(
    "now_ns sequence events timers free_call free_message calls_live messages_live violation violation_a violation_b "
    "lossless network_ns instants requests hash records request_id rate_permille measuring minutes_ns "
    "events_max execs_before rows_before measured_ns look_every"
)


class SimWorld(Tables):
    """All tables; `core` is what the controller would have."""

    core: World
    agenda: ag.Agenda  #: 2 lanes per GPU, as in the emulated worker
    residency: rs.Residency
    action: np.ndarray  #: agenda.ACTION [1], one that is handed to the agenda
    taken: np.ndarray  #: agenda.ACTION [1], one that has just left it
    running: np.ndarray  #: agenda.ACTION [2 * gpus]
    lanes: np.ndarray  #: SIM_LANE [2 * gpus]
    gpus: np.ndarray  #: SIM_GPU [gpus]
    events: np.ndarray  #: EVENT [events_max], a heap
    timers: np.ndarray  #: TIMER: sources, then lanes, by when they must be looked at
    calls: np.ndarray  #: CALL
    #: u1 [calls]: 1 while the controller has a call, 2 while it is on its way or its client pauses, 0 if there is none;
    #: apart from the rest, because each look reads all of them
    live: np.ndarray
    messages: np.ndarray  #: MESSAGE
    issued: np.ndarray  #: ISSUED [the core's actions_max]
    sources: np.ndarray  #: SOURCE
    trace: np.ndarray  #: i8 [n, 2]: (ns since the source's start, model), sorted; the trace sources' pieces in turn
    rates: np.ndarray  #: i8 [rows, minutes]: requests per minute in millionths, for SOURCE_MINUTES
    shares: np.ndarray  #: i8 [minutes, models]: up to where of 2**32 a draw means the model, for SOURCE_MINUTES of many
    faults: np.ndarray  #: FAULT
    models: np.ndarray  #: i8 [models]: the core's handle of model number i
    programs: np.ndarray  #: i8 [programs, BATCHES_MAX, classes]: how long an execution really takes
    loads: np.ndarray  #: i8 [programs]: how long a load really takes
    modes: np.ndarray  #: i8 [modes, 2]: the application; the share of 2**32 of its source's requests up to and with it
    stretches: np.ndarray  #: i8 [modes, points, 2]: quantile tables of their stretches
    gaps: np.ndarray  #: i8 [tables, points, 2]: quantile tables of gaps of mean 2**STRETCH_BITS, for SOURCE_GAMMA
    random: np.ndarray  #: i8: a state per stream
    logs: np.ndarray  #: random.make_logs()
    exec_noise: np.ndarray  #: quantile tables
    load_noise: np.ndarray
    network_noise: np.ndarray
    groups: np.ndarray  #: GROUP
    histogram: np.ndarray  #: i8 [groups, HISTOGRAM_BUCKETS]: latencies of the replies with outputs
    served: np.ndarray  #: SERVED [models]
    state: np.ndarray  #: STATE [1]
    notes: Notes  #: the checkers'
