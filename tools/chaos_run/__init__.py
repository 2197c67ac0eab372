"""Faults by a seed on a real cluster, and whether every promise held: `tools/chaos`, `python -m tools.chaos_run`.

`schedule` says what happens when, `testbed` brings the hosts and daemons up, `native`, `http` and `unruly` are the clients
(processes of their own, each with a ledger), `faults` does what the schedule says, `check`, `goodput` and `verdict` judge
what the ledgers hold, and `report` shows it.
"""
