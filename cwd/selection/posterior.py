"""How probable it is that each member is the best, if its mean gain has a Beta posterior from a uniform prior."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

#: nodes of the integral for each member, over so many standard deviations to both sides, and evenly over [0, 1]
_NODES, _DEVIATIONS, _EVEN = 49, 7.0, 65


@lru_cache(maxsize=1024)
def best_probabilities(plays: tuple[float, ...], losses: tuple[float, ...]) -> tuple[float, ...]:
    """P(member i has the highest gain), for each; `plays` observations each, that lost `losses` together.

    The sum over cells of P(i in the cell) times P(all others below it), by trapezoids on nodes that lie where the
    posteriors have their mass.
    """
    if len(plays) == 1:
        return (1.0,)
    lost = np.array(losses)
    won = np.maximum(np.array(plays) - lost, 0.0)
    mean = (won + 1.0) / (won + lost + 2.0)
    deviation = np.sqrt(mean * (1.0 - mean) / (won + lost + 3.0))
    nodes = mean[:, None] + deviation[:, None] * np.linspace(-_DEVIATIONS, _DEVIATIONS, _NODES)
    inner = np.concatenate([nodes[(nodes > 0.0) & (nodes < 1.0)], np.linspace(0.0, 1.0, _EVEN)[1:-1]])
    at = np.unique(inner)
    # no density is taken at 0 and 1 themselves, where the logarithms end: the outermost nodes stand for them
    log_density = won[:, None] * np.log(at) + lost[:, None] * np.log1p(-at)
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    edges = np.concatenate([[0.0], at, [1.0]])
    density = np.concatenate([density[:, :1], density, density[:, -1:]], axis=1)
    mass = (density[:, 1:] + density[:, :-1]) / 2.0 * np.diff(edges)
    mass /= mass.sum(axis=1, keepdims=True)
    upto = np.cumsum(mass, axis=1)
    # below the middle of the cell, as far as a cell can be resolved
    below = upto - mass / 2.0
    # all the others: those before it and those behind it, so that many members do not cost their square
    ones = np.ones((1, below.shape[1]))
    before = np.cumprod(np.concatenate([ones, below[:-1]]), axis=0)
    behind = np.cumprod(np.concatenate([ones, below[:0:-1]]), axis=0)[::-1]
    best = (mass * before * behind).sum(axis=1)
    return tuple((best / best.sum()).tolist())
