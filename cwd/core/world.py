"""The core's state: a bundle of tables of fixed capacity, and the configuration that sizes them.

Every field is an int64: no float can enter, and plain Python (NUMBA_DISABLE_JIT=1) and machine code agree on each
sum. -1 is "none" for every index. A table's free rows are linked through its `next` (or `link`) field, from the
`free_*` field of `counters`. This module knows the layout alone; what changes a table is in the file of its noun.
DESIGN.md has the state tables.
"""

from __future__ import annotations

import dataclasses
import numpy as np

from cwd.core.presets import MAY_BE_0, OBJECTIVES, OVERRIDES, PRESETS, Preset
from cwd.errors import Code, CwdError
from cwd.tables import Tables

NONE = -1
#: "never", for timers: far beyond any clock, far from overflow
FOREVER_NS = 1 << 62
#: an id is `generation << SLOT_BITS | slot`
SLOT_BITS = 32
SLOT_MASK = (1 << SLOT_BITS) - 1

# states of a request
REQUEST_FREE, REQUEST_QUEUED, REQUEST_RUNNING = 0, 1, 2
# states of a model
MODEL_FREE, MODEL_READY, MODEL_REMOVING = 0, 1, 2
# states of a GPU
GPU_ABSENT, GPU_UP, GPU_DRAINING = 0, 1, 2
# states of a copy (a model's pages on a GPU); UNKNOWN: a LOAD or UNLOAD was lost, an UNLOAD will settle it
# DRAINING: as READY, on a GPU that takes no new work
COPY_FREE, COPY_LOADING, COPY_READY, COPY_UNLOADING, COPY_UNKNOWN, COPY_DRAINING = 0, 1, 2, 3, 4, 5
# verbs of an action; RESERVED holds the exec lane for what the host issues itself (PREPARE, PROFILE)
ACTION_FREE, ACTION_LOAD, ACTION_UNLOAD, ACTION_EXEC, ACTION_RESERVED = 0, 1, 2, 3, 4
# kinds of record in the outbox
OUT_ACTION, OUT_REPLY, OUT_RELEASE = 1, 2, 3
# lanes of a GPU: row `2 * gpu + lane` of `lanes`
LANE_EXEC, LANE_LOAD = 0, 1
# margins measured per kind of GPU
MARGIN_SEND, MARGIN_RESULT, MARGIN_END, MARGIN_LOOK, MARGIN_EARLY, MARGINS = 0, 1, 2, 3, 4, 5

#: samples that an estimate remembers
WINDOW = 32
#: the backlog of a GPU by due time: BUCKETS of 2**BUCKET_BITS ns (4.2 ms), a horizon of about half a second
BUCKETS = 128
BUCKET_BITS = 22
BATCHES_MAX = 8
#: most batches that a look at one GPU weighs against each other
SHORTLIST_MAX = 64
#: bins of a histogram of execution times: 8 per octave, from a quarter of the profiled duration to 16 times that
BINS = 48
#: requests of a model that sets.py looks at, applications among them and groups of those that it tells apart
SETS_LOOK, SETS_TAGS, SETS_GROUPS = 64, 8, 4


#: bytes; tables that are visited at random start on a cache line and have rows of whole lines, for fewer misses
LINE = 64


def _table(fields: str, line: int = 8) -> np.dtype:
    names = fields.split()
    size = -(-8 * len(names) // line) * line
    return np.dtype({"names": names, "formats": [np.int64] * len(names), "offsets": [8 * i for i in range(len(names))],
                     "itemsize": size}, align=True)


#: a node of an ordered set (ordered.py): by key, then tie, which is unique within a set
NODE = _table("key tie left right parent rank", LINE)
#: heap.py: entry i of the heap is (key, id); `place` of row i says where id i is, -1 if it is not in
TIMER = _table("key id place")
#: hashmap.py: a row is used if `value` is not -1
SLOT = _table("key value")

#: what a walk along a queue reads comes first, in one line
REQUEST = _table(
    "due_ns size_class need_ns tag picked next state "
    "client request_id key model payload arrival_ns deadline_ns "
    "cost_ns home home_epoch bucket attempts cold action app slo_ns client_next client_previous", LINE
)
#: missed_ns: when a request was last refused only because the weights were on no GPU, 0 never
#: what a GPU's look at its models reads comes first, in one line
MODEL = _table(
    "state program queue_head queued copies copies_count copies_ready wanted "
    "generation pages queue_root running work_ns missed_ns next", LINE
)
#: dynamic: 1 while its executions scatter far more than noise does, as `scatter` counts; off: executions far off their
#: profile (histograms.py)
PROGRAM = np.dtype(
    [(name, np.int64) for name in ("used", "n_batches", "n_classes", "prepared", "models", "dynamic", "scatter", "off")]
    + [("batches", np.int64, (BATCHES_MAX,))], align=True)
#: tail_ns and typical_ns are what the window says, low_ns its least; both decay towards min(low, seed) unless sampled;
#: doubted_ns is when the seed was last lowered because nobody could be served with it, 0 if it was not; profiled_ns is the
#: seed that was given, which no doubt changes; own_ns the last execution by the device's own clock
ESTIMATE = np.dtype(
    [(name, np.int64) for name in ("seed_ns", "low_ns", "typical_ns", "tail_ns", "updated_ns", "doubted_ns", "since_ns",
                                      "position", "count", "profiled_ns", "own_ns")]
    + [("samples", np.int64, (WINDOW,))], align=True)
#: pressed_ns: when it last had to turn somebody away; look_ns: when the policy wants to look again, come what may;
#: cycle_ns, planned_ns: the round in which a policy that plans rounds serves its models, and when it was planned;
#: background_ns: how long what is not urgent and waits for it would take, as last looked at
#: what admission reads of each GPU that it looks at comes first, in one line
GPU = _table(
    "state kind backlog_ns pressed_ns pages_total pages_free pages_hidden dirty "
    "epoch dirty_next ready_root ready_head lru_first lru_last copies look_ns cycle_ns planned_ns background_ns", LINE
)
#: `first`..`last` are outstanding actions in the order sent; available_ns is the predicted end of the last
LANE = _table("first last count available_ns")
#: turn_ns: when it was last given an execution; quota: requests in each of its GPU's rounds, if it was
#: packed into them at packed_ns; strategy: the batch index that its place in the GPU's set is for, -1 the largest
#: what walks along a model's copies and a GPU's oldest ones read comes first, in one line
COPY = _table(
    "state model gpu pages running active next lru_next "
    "previous lru_previous action ready_ns turn_ns quota packed_ns strategy", LINE
)
ACTION = _table(
    "state generation gpu copy model program batch_index batch size_class rows first issued_ns "
    "earliest_ns latest_ns expected_ns promised_ns start_ns end_ns expire_ns lane lane_next lane_previous idle parked next "
    "background"
)
CLIENT = _table("first count")
#: how long executions of one application take, by `counts` (samples, in 1024ths) and `sums` of their stretch, which is
#: the measured duration over the profiled one, in 4096ths; version counts the changes,
#: alone the requests that ran alone, and probed is the version when the last of them did
HISTOGRAM = np.dtype(
    [(name, np.int64) for name in ("total", "version", "alone", "probed")]
    + [(name, np.int64, (BINS,)) for name in ("counts", "sums")], align=True)
#: a batch's latency if one application's request is in it: `count` outcomes, ascending, with chance_j in 65536ths and
#: their stretch; mean: the mean stretch; built: from which versions
ODDS = np.dtype(
    [(name, np.int64) for name in ("built", "count", "mean")]
    + [(name, np.int64, (BINS,)) for name in ("chances", "stretches")], align=True)
#: what policies remember of a model: the gap between arrivals (smoothed), the SLO last asked for; the largest batch, in
#: 1024ths; a line of latency over batch size, as the latencies of the smallest and the largest batch; which of its queue
#: were passed over, as key and tie of the first that was not; used: a number that grows with each use; the GPU time that
#: it was given, faded up to faded_ns; the service owed; of its requests those that came soon after the one before, and those
#: that were lost, and how long waiting for the next one took. What `cwd` reads comes first, in one line
MEMORY = _table(
    "arrived_ns gap_ns owed work_ns faded_ns soon waited_ns lost slo_ns used limit small_ns large_ns passed_key passed_tie", LINE
)
#: a batch that should run soon: share_ns of it on each of its model's GPUs; out: it has given way (shortlist.py)
SHORTLIST = _table("copy first batch rows batch_ns latest_ns share_ns out")
#: scratch of sets.py: the requests looked at, the applications that wait, their groups, and the best batch so far
SETS = np.dtype(
    [(name, np.int64) for name in ("count", "tags", "groups", "outcomes", "best_batch", "best_rows", "best_worth",
                                   "n_batches")]
    + [(name, np.int64, (BATCHES_MAX,)) for name in ("sizes", "profiled")]
    + [(name, np.int64, (SETS_LOOK,)) for name in ("rows", "slacks", "places", "listed", "gains", "best")]
    + [(name, np.int64, (SETS_TAGS,)) for name in ("tag", "waiting", "mean", "order", "group")]
    + [(name, np.int64, (SETS_GROUPS * BINS,)) for name in ("counts", "sums", "below")]
    + [(name, np.int64, (BINS,)) for name in ("joint", "stretch")]
    + [(name, np.int64, (SETS_GROUPS,)) for name in ("members", "quickest")], align=True)
#: one record of the outbox; fields that a kind does not use are 0, or -1 for handles and indices
OUT = _table(
    "kind verb gpu action model program pages batch size_class rows first earliest_ns latest_ns expected_ns expire_ns "
    "client request_id status payload result row queued_ns load_ns exec_ns total_ns served_ns cold app"
)
COUNTERS = _table(
    "outbox_count broken sequence dirty_first dirty_last timers_count loads_count "
    "free_request free_model free_copy free_action apps requests_live actions_live models_live copies_live gpus_up "
    "wanted_root wanted_head map_count copy_map_count "
    "accepted refused answered dropped missed failed requeued stale expired loads unloads execs rows cold replicas "
    "background_runs background_care background_until_ns background_urgent_ns slack_ns urgent_ns urgent_asked_ns "
    "spread_model spread_ns price_ns usual_ns spent_ns spent_rows demand_ns asked_ns share"
)
SETTINGS = _table(
    "policy admission foresight queue_order copy_order load_order replicate load_saves evict_queued "
    "margins_fixed drop_passed estimates_recent begins_at_once polls costs_alone "
    "learns picks gathers spreads prices fair batch_delay_ns due_floor_ns "
    "schedule_ahead_ns load_ahead_ns send_ns result_ns end_ns client_ns latest_slack_ns exec_grace_ns "
    "load_grace_ns stuck_ns lane_depth attempts_max slo_max_ns margin_max_ns load_horizon_ns "
    "requests_max models_max programs_max gpus_max copies_max actions_max clients_max kinds_max classes_max "
    "load_base margin_base gpu_timer action_timer"
)


class World(Tables):
    """All tables. Rows are reached as `world.models[slot]["queued"]`; the shapes are given for Config's fields."""

    requests: np.ndarray  #: REQUEST [requests_max]
    request_nodes: np.ndarray  #: NODE [requests_max], a set per model: its queue, by (due_ns or arrival, sequence)
    models: np.ndarray  #: MODEL [models_max]
    wanted_nodes: np.ndarray  #: NODE [models_max], one set: models that want a LOAD, by (-demand, slot)
    programs: np.ndarray  #: PROGRAM [programs_max]
    estimates: np.ndarray  #: ESTIMATE: exec per (program, kind, batch, class), then load per (program, kind), then margins
    gpus: np.ndarray  #: GPU [gpus_max]
    lanes: np.ndarray  #: LANE [2 * gpus_max]
    copies: np.ndarray  #: COPY [copies_max]
    copy_nodes: np.ndarray  #: NODE [copies_max], a set per GPU: copies whose models may have work
    actions: np.ndarray  #: ACTION [actions_max]
    timers: np.ndarray  #: TIMER: a model's expiry, a GPU's next look, an action's expiry
    load_lanes: np.ndarray  #: TIMER [gpus_max]: GPUs by when their load lanes come free
    request_map: np.ndarray  #: SLOT: (client, request id) -> request
    copy_map: np.ndarray  #: SLOT: (model, gpu) -> copy
    clients: np.ndarray  #: CLIENT [clients_max]
    memory: np.ndarray  #: MEMORY [models_max]
    histograms: np.ndarray  #: HISTOGRAM [programs_max + apps_max]: programs, each over its applications; then those
    odds: np.ndarray  #: ODDS [programs_max + apps_max, BATCHES_MAX]
    sets: np.ndarray  #: SETS [1], scratch
    app_map: np.ndarray  #: SLOT: (program, application) -> histogram
    shortlist: np.ndarray  #: SHORTLIST [SHORTLIST_MAX]: scratch
    prepared: np.ndarray  #: u1 [gpus_max, programs_max]: 1 if the GPU can run the program
    backlog: np.ndarray  #: i8 [gpus_max, BUCKETS + 1]: queued work by due time; the last is beyond the horizon
    outbox: np.ndarray  #: OUT [outbox_max]
    counters: np.ndarray  #: COUNTERS [1]
    settings: np.ndarray  #: SETTINGS [1]


@dataclasses.dataclass(frozen=True)
class Config:
    """Capacities and constants of a world; durations are ns. Margins are only where measuring starts from.

    What is None by default is as the policy's preset says (presets.py).
    """

    policy: str = "clockwork"
    #: what a policy that knows prices is after: "fair", every model gets half of the overall share at least; "goodput"
    objective: str = "fair"
    models_max: int = 4096
    programs_max: int = 64
    requests_max: int = 16384
    gpus_max: int = 128
    copies_max: int = 32768
    actions_max: int = 4096
    #: a client is the host's slot number, 0 <= client < clients_max
    clients_max: int = 4096
    kinds_max: int = 4
    classes_max: int = 8
    #: (program, application) pairs told apart by a policy that does; what comes later counts as the program's average
    apps_max: int = 256
    #: how many events the host may feed between two readings of the outbox
    events_max: int = 4096
    #: 1: refuse at arrival what no plan serves in time; 0: queue it and see
    admission: int | None = None
    #: an action goes out when its lane comes free within this, its way there and what was measured (lanes.ahead_ns)
    schedule_ahead_ns: int | None = None
    load_ahead_ns: int | None = None
    #: first margins: issue to begin, end to the host's event, an execution's result after its promise, the host's look
    #: after it was due, an execution's end before it was expected
    send_ns: int | None = None
    result_ns: int | None = None
    end_ns: int | None = None
    look_ns: int | None = None
    early_ns: int | None = None
    margin_max_ns: int = 5_000_000
    #: reserved for the reply's way to the client
    client_ns: int | None = None
    #: an action may begin this much later than predicted, if its requests' deadlines allow
    latest_slack_ns: int | None = None
    #: an action is lost this long after its latest end (and once more its expected duration)
    exec_grace_ns: int = 100_000_000
    load_grace_ns: int = 500_000_000
    #: nothing more is sent to a lane whose running action is overdue by this (and once more its expected duration)
    stuck_ns: int = 10_000_000
    #: most actions outstanding per lane (the worker's agenda must hold both lanes')
    lane_depth: int = 32
    attempts_max: int = 3
    slo_max_ns: int = 3_600_000_000_000
    #: a model is replicated when its copies' GPUs are busy for longer than this (or than its head's SLO, if less)
    load_horizon_ns: int | None = None
    #: how long a policy that delays batches (clipper) holds back one that is not full
    batch_delay_ns: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in PRESETS:
            raise CwdError(f"no policy {self.policy!r}; there are {', '.join(PRESETS)}", code=Code.BAD_ARGUMENT)
        if self.objective not in OBJECTIVES:
            raise CwdError(f"no objective {self.objective!r}; there are {', '.join(OBJECTIVES)}", code=Code.BAD_ARGUMENT)
        for name in OVERRIDES:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self.preset, name))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in MAY_BE_0 else 1
            if field.name not in ("policy", "objective") and (not isinstance(value, int) or value < least):
                kind = "an integer of 0 or more" if least == 0 else "a positive integer"
                raise CwdError(f"{field.name} must be {kind}, not {value!r}", code=Code.BAD_ARGUMENT)

    @property
    def preset(self) -> Preset:
        """What the policy asks of the engine."""
        return PRESETS[self.policy]

    @property
    def outbox_max(self) -> int:
        """Room that one batch can never overflow: DESIGN.md, "The outbox"."""
        return 2 * self.requests_max + self.actions_max + 4 * self.events_max


def make_world(config: Config) -> World:
    """An empty world: no models, no GPUs, all tables free."""
    c = config
    pairs = c.programs_max * c.kinds_max
    load_base = pairs * BATCHES_MAX * c.classes_max
    margin_base = load_base + pairs
    world = World(
        requests=free_list(_zeros(c.requests_max, REQUEST)),
        request_nodes=_zeros(c.requests_max, NODE),
        models=free_list(_zeros(c.models_max, MODEL)),
        wanted_nodes=_zeros(c.models_max, NODE),
        programs=np.zeros(c.programs_max, PROGRAM),
        estimates=np.zeros(margin_base + MARGINS * c.kinds_max, ESTIMATE),
        gpus=_zeros(c.gpus_max, GPU),
        lanes=_zeros(2 * c.gpus_max, LANE),
        copies=free_list(_zeros(c.copies_max, COPY)),
        copy_nodes=_zeros(c.copies_max, NODE),
        actions=free_list(np.zeros(c.actions_max, ACTION)),
        timers=empty_heap(c.models_max + c.gpus_max + c.actions_max),
        load_lanes=empty_heap(c.gpus_max),
        request_map=_empty_map(c.requests_max),
        copy_map=_empty_map(c.copies_max),
        clients=np.zeros(c.clients_max, CLIENT),
        memory=_zeros(c.models_max, MEMORY),
        histograms=np.zeros(c.programs_max + c.apps_max, HISTOGRAM),
        odds=np.zeros((c.programs_max + c.apps_max, BATCHES_MAX), ODDS),
        sets=np.zeros(1, SETS),
        app_map=_empty_map(c.apps_max),
        shortlist=np.zeros(SHORTLIST_MAX, SHORTLIST),
        prepared=np.zeros((c.gpus_max, c.programs_max), np.uint8),
        backlog=np.zeros((c.gpus_max, BUCKETS + 1), np.int64),
        outbox=np.zeros(c.outbox_max, OUT),
        counters=np.zeros(1, COUNTERS),
        settings=np.zeros(1, SETTINGS),
    )
    world.clients["first"] = NONE
    world.lanes["first"] = world.lanes["last"] = NONE
    for name in ("dirty_first", "dirty_last", "wanted_root", "wanted_head", "spread_model"):
        world.counters[name] = NONE
    settings = world.settings[0]
    settings["policy"] = c.preset.number
    for source in (c.preset, c):
        for field in dataclasses.fields(source):
            if field.name in SETTINGS.names and field.name != "policy":
                settings[field.name] = getattr(source, field.name)
    settings["fair"] = 1 if c.preset.prices == 1 and c.objective == "fair" else 0
    settings["load_base"], settings["margin_base"] = load_base, margin_base
    settings["gpu_timer"], settings["action_timer"] = c.models_max, c.models_max + c.gpus_max
    for kind in range(c.kinds_max):
        for margin, seed_ns in ((MARGIN_SEND, c.send_ns), (MARGIN_RESULT, c.result_ns), (MARGIN_END, c.end_ns),
                                (MARGIN_LOOK, c.look_ns), (MARGIN_EARLY, c.early_ns)):
            _seed(world.estimates[margin_base + kind * MARGINS + margin], seed_ns)
    return world


def _zeros(rows: int, dtype: np.dtype) -> np.ndarray:
    """Zeroed rows that start on a cache line."""
    raw = np.zeros(rows * dtype.itemsize + LINE, np.uint8)
    skip = -raw.ctypes.data % LINE
    return raw[skip:skip + rows * dtype.itemsize].view(dtype)


def free_list(table: np.ndarray) -> np.ndarray:
    """Link zeroed rows through `next`, in order: the list starts at row 0, where a zeroed head points."""
    table["next"] = np.arange(1, len(table) + 1)
    table["next"][-1] = NONE
    return table


def empty_heap(size: int) -> np.ndarray:
    """TIMER [size]: an indexed heap (heap.py) of ids below `size`, none of them in."""
    heap = np.zeros(size, TIMER)
    heap["place"] = NONE
    return heap


def _empty_map(entries: int) -> np.ndarray:
    """A power of two, at most half full."""
    table = np.zeros(1 << max(3, (2 * entries - 1).bit_length()), SLOT)
    table["value"] = NONE
    return table


def _seed(row: np.void, duration_ns: int) -> None:
    row["seed_ns"] = row["low_ns"] = row["typical_ns"] = row["tail_ns"] = duration_ns
    row["samples"] = duration_ns
