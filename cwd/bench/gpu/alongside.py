"""Work for the device in a thread of its own, inside `with`: what goes on while something else is measured."""

from __future__ import annotations

import threading
from typing import Self

from cwd.worker.backends.gpu import Gpu


class Alongside:
    """`_work` goes on until `_stop` is set, which the end of `with` does; what it raises is raised there."""

    #: whether it works in the exec lane's stream, else in the load lane's
    urgent: bool

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._stop = gpu, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _work(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            with self._gpu.thread(urgent=self.urgent):
                self._work()
        except BaseException as error:
            self.failure = error
