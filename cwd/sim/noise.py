"""How durations scatter around their profile: quantile tables of what is added, ns.

Clockwork's figure 10 gives the tails of the errors of its predictions: INFER more than 144 us over in 1 % of the cases,
0.15 ms in 0.1 %, 0.6 ms in 0.01 %, 1.2 ms in 0.001 %, at most 12 ms; under by 55 us, 0.06 and 0.10 ms, at most 0.94 ms;
LOAD over by 431 us and under by 348 us in 1 %. Between those points we interpolate, and assume that nine in ten
executions are within 15 us of their profile.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cwd.errors import Code, CwdError
from cwd.sim.random import BITS

US = 1_000

#: (share of the executions that lie below, what is added)
_EXEC = ((0.0, -940), (0.00001, -300), (0.0001, -100), (0.001, -60), (0.01, -55), (0.05, -10), (0.5, 0), (0.9, 15),
         (0.99, 144), (0.999, 150), (0.9999, 600), (0.99999, 1_200), (0.999999, 6_000), (1.0, 12_000))
_LOAD = ((0.0, -940), (0.01, -348), (0.05, -60), (0.5, 0), (0.9, 60), (0.99, 431), (0.999, 600), (0.9999, 1_200),
         (1.0, 12_000))
#: a message's way, added to the network's delay: a switch's queue now and then, a scheduler's slice rarely
_NETWORK = ((0.0, 0), (0.9, 20), (0.99, 60), (0.999, 200), (0.9999, 500), (1.0, 1_500))

KINDS = ("exec", "load", "network")


def tables(noise: str) -> dict[str, np.ndarray]:
    """Quantile tables i8 [n, 2] by kind, for `clockwork`, `none`, or a file of recorded errors of executions, one a line, ns.

    Recorded errors are for executions; loads and the network stay Clockwork's. Raises `CwdError` for a file that is not such.
    """
    if noise == "none":
        return {kind: quantiles(((0.0, 0), (1.0, 0))) for kind in KINDS}
    found = {"exec": quantiles(_EXEC), "load": quantiles(_LOAD), "network": quantiles(_NETWORK)}
    if noise != "clockwork":
        found["exec"] = recorded(Path(noise))
    return found


def quantiles(points: tuple[tuple[float, int], ...]) -> np.ndarray:
    """A table for `random.quantile` from (share, us)."""
    return np.array([(round(share * (1 << BITS)), value * US) for share, value in points], np.int64)


def recorded(path: Path, rows: int = 256) -> np.ndarray:
    """The table of the numbers in a text file, at evenly spaced quantiles and, finer, in both tails."""
    try:
        values = np.sort(np.array([int(line) for line in path.read_text().split()], np.int64))
    except OSError as error:
        raise CwdError(f"{path}: {error.strerror}; noise is clockwork, none or a file", code=Code.BAD_ARGUMENT) from error
    except ValueError:
        raise CwdError(f"{path}: a whole number of ns a line is wanted", code=Code.BAD_ARGUMENT) from None
    if len(values) < 2:
        raise CwdError(f"{path}: two numbers at least are wanted", code=Code.BAD_ARGUMENT)
    tails = [10.0 ** -k for k in range(3, 7)]
    shares = sorted({*(i / rows for i in range(rows + 1)), *tails, *(1 - tail for tail in tails)})
    return np.array([(round(share * (1 << BITS)), values[round(share * (len(values) - 1))]) for share in shares], np.int64)
