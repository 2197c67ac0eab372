"""Many seeds of `cwd sim soak`, in as many processes as there are cores: one line per broken world, and how to see it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from cwd.core.presets import PRESETS
from cwd.errors import CwdError, InvariantError
from cwd.sim.command import run


def one(policy: str, seed: int, seconds: float) -> tuple[str, int, str, int]:
    """(policy, seed, what is wrong or "", requests offered) of one world."""
    try:
        facts = run("soak", policy, seed, seconds=seconds)
    except (CwdError, InvariantError) as error:
        return policy, seed, str(error), 0
    return policy, seed, "", round(sum(row["offered_rps"] for row in facts["rows"]) * seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="virtual time of each")
    parser.add_argument("--policy", action="append", choices=sorted(PRESETS), help="may be repeated; all, if none is given")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    policies = given.policy or sorted(PRESETS)
    broken, requests, done = dict.fromkeys(policies, 0), 0, 0
    with ProcessPoolExecutor(given.processes) as pool:
        worlds = [pool.submit(one, policy, seed, given.seconds)
                  for seed in range(given.first, given.first + given.seeds) for policy in policies]
        for world in as_completed(worlds):
            policy, seed, fault, offered = world.result()
            done, requests = done + 1, requests + offered
            if fault:
                broken[policy] += 1
                sys.stderr.write(f"{fault}\n  again: cwd sim soak --policy {policy} --seed {seed} --seconds {given.seconds}\n")
            elif done % 20 == 0:
                sys.stderr.write(f"{done}/{len(worlds)} worlds\n")
    found = sum(broken.values())
    sys.stdout.write(json.dumps({"worlds": len(worlds), "broken": found, "broken_by_policy": broken, "requests": requests}) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
