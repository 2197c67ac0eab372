"""The verbs of the core: what a host tells it. Signatures first; see DESIGN.md for the host's duties.

request_arrived(world, now_ns, client, request_id, model, size_class, deadline_ns, slo_ns, app, payload) -> code
request_cancelled(world, now_ns, client, request_id) -> 1 if it was queued and is answered now, else 0
client_gone(world, now_ns, client)
action_done(world, now_ns, action, status, begin_ns, end_ns, device_ns, rows_done, pages_free, payload) -> 0 or STALE
gpu_joined(world, now_ns, gpu, kind, pages_total) ; gpu_resident(world, now_ns, gpu, model) -> code
gpu_lost(world, now_ns, gpu) ; gpu_draining(world, now_ns, gpu)
lane_reserve(world, now_ns, gpu, expected_ns) -> action id (-1: table full)
program_added(world, program, batch_sizes, n_batches, n_classes) ; program_prepared(world, now_ns, gpu, program, ok)
estimate_seed(world, program, kind, batch_index, size_class, exec_ns) ; load_seed(world, program, kind, load_ns)
model_added(world, now_ns, program, pages) -> handle or minus a code ; model_removed(world, now_ns, model) -> code
set_draining(world, on) ; tick(world, now_ns) ; next_timer(world, now_ns) -> ns
"""
