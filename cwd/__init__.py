"""cwd ("clockwork daemon") serves thousands of neural networks, each request inside its deadline or refused at once.

`import cwd` costs next to nothing: the names below are imported when they are first used, and none of them brings in
torch or numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwd.client import AsyncClient, Client, Model, Pending, Result, as_completed
    from cwd.cluster import LocalCluster
    from cwd.selection.aio import AsyncApps
    from cwd.selection.apps import App, AppStore
    from cwd.selection.blocking import Apps
    from cwd.selection.result import AppResult

__version__ = "0.1.0"

_HOME = {
    "App": "cwd.selection.apps",
    "AppResult": "cwd.selection.result",
    "AppStore": "cwd.selection.apps",
    "Apps": "cwd.selection.blocking",
    "AsyncApps": "cwd.selection.aio",
    "AsyncClient": "cwd.client",
    "Client": "cwd.client",
    "Model": "cwd.client",
    "Pending": "cwd.client",
    "Result": "cwd.client",
    "as_completed": "cwd.client",
    "LocalCluster": "cwd.cluster",
}
_ERRORS = (
    "Code", "CwdError", "RequestError", "Refused", "DeadlineUnreachable", "DeadlineExpired", "SloBelowExecution",
    "QueueFull", "CreditExceeded", "RateExceeded", "PayloadsExceeded", "NoWorker", "Draining", "WorkerLost",
    "DeadlineMissed", "Cancelled", "ExecutionFailed", "ControllerLost", "BadRequest", "UnknownModel",
)
_HOME.update(dict.fromkeys(_ERRORS, "cwd.errors"))

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'cwd' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
