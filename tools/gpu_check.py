"""Measures on one GPU what the worker relies on, compares with the bars, and decides its settings: one call, nine minutes.

    python3 tools/gpu_check.py [--budget 520] [--only E1,E3] [--out FILE] [--commit HASH] [--json]
    python3 tools/gpu_check.py --dry-run    # every step with a stand-in and toy models, on any machine

tools/gpu_results/README.md says what the results mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for everything (520)")
    parser.add_argument("--only", default="", help="steps, with commas between")
    parser.add_argument("--out", type=Path, help="the JSON file (tools/gpu_results/<date>-<device>-<commit>.json)")
    parser.add_argument("--commit", default="", help="what to note where there is no .git")
    parser.add_argument("--dry-run", action="store_true", help="walk through without a GPU; no figure means anything")
    parser.add_argument("--json", action="store_true", help="print the results instead of the table")
    given = parser.parse_args()
    rig, why = find_rig(dry=given.dry_run)
    if rig is None:
        print(f"gpu_check: {why}; nothing was measured (--dry-run walks through every step without a GPU)")
        return 0
    from cwd.bench.gpu import bars
    from cwd.bench.gpu.check import STEPS, Check

    names = given.only.split(",") if given.only else [step.name for step in STEPS]
    unknown = set(names) - {step.name for step in STEPS}
    if unknown:
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(step.name for step in STEPS)}")
    commit = given.commit or commit_here()
    default = ROOT / ("run" if given.dry_run else "tools/gpu_results") / f"{time.strftime('%Y-%m-%d')}-{rig.kind}-{commit}.json"
    path = given.out or default
    check = Check(rig, path, commit=commit, budget_s=given.budget, say=say)
    results = check.run([step for step in STEPS if step.name in names])
    print(json.dumps(results) if given.json else f"{bars.table(results)}\nin {path}")
    return 0


def find_rig(*, dry: bool):
    """A rig, or None and why there is none."""
    try:
        if dry:
            from cwd.bench.gpu.host_rig import HostRig

            return HostRig(), ""
        from cwd.bench.gpu.cuda_rig import CudaRig
        from cwd.worker.backends import cuda
    except Exception as error:  # torch, or something that cwd needs, is missing or broken
        return None, f"{type(error).__name__}: {error}"
    return (CudaRig(), "") if cuda.count() else (None, "there is no GPU here that torch can use")


def commit_here() -> str:
    """The checkout's commit, "unknown" where it is none."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                              check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def say(text: str) -> None:
    sys.stderr.write(f"gpu_check: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
