"""The entry point: runs the command, and turns everything that a user can cause into one line and an exit code.

0 is success, 1 a failure that the line on stderr explains, 2 a wrong use of the command line, 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

#: what is missing from a bare installation, and the extra that brings it
_EXTRAS = {"click": "server", "numba": "server", "llvmlite": "server", "torch": "server", "safetensors": "server",
           "tqdm": "server", "psutil": "server", "transformers": "zoo", "matplotlib": "plot",
           "starlette": "gateway", "uvicorn": "gateway", "orjson": "gateway", "rich": "metrics",
           "prometheus_client": "metrics", "etcd3gw": "standby"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    from cwd.errors import CwdError

    try:
        import click

        from cwd.cli.root import cwd
    except ModuleNotFoundError as error:
        return _missing(error)
    try:
        found = cwd.main(args=list(arguments) if arguments is not None else None, prog_name="cwd",
                         standalone_mode=False)
        return found if isinstance(found, int) else 0
    except click.UsageError as error:
        where = f"{error.ctx.command_path}: " if error.ctx is not None else "cwd: "
        return _fail(where + error.format_message(), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except CwdError as error:
        return _fail(str(error), 1)
    except ModuleNotFoundError as error:
        return _missing(error)
    except BrokenPipeError:
        # whoever read our output has gone; say nothing more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC, errno.EROFS):
            raise
        return _fail(f"{error.filename or 'file'}: {error.strerror}", 1)


def _missing(error: ModuleNotFoundError) -> int:
    name = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(name)
    if extra is None:
        raise error
    return _fail(f"{name} is not installed: pip install 'cwd[{extra}]'", 1)


def _fail(text: str, code: int) -> int:
    sys.stderr.write("cwd: error: " + " ".join(text.split()) + "\n" if code != 130 else "\n")
    return code
