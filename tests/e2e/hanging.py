"""`python -m cwd`, but the loop that `CWD_HANG` names hangs for ever as soon as the file in `CWD_HANG_FILE` is there."""

import os
import time

from cwd.cli.main import main


def hanging(function):
    """`function`, called by a loop again and again, until the file is there."""
    def called(*arguments, **named):
        while os.path.exists(os.environ["CWD_HANG_FILE"]):
            time.sleep(1)
        return function(*arguments, **named)
    return called


if __name__ == "__main__":
    if os.environ.get("CWD_HANG") == "controller":
        from cwd.controller import loop

        loop.run = hanging(loop.run)
    elif os.environ.get("CWD_HANG") == "exec lane":
        from cwd.worker.device import Device

        Device.execute = hanging(Device.execute)
    elif os.environ.get("CWD_HANG") == "gateway":
        import uvicorn

        uvicorn.Server.on_tick = hanging(uvicorn.Server.on_tick)
    main()
