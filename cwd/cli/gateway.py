"""`cwd gateway`: the HTTP front door. Flags are made from its own record of settings, as those of the other daemons."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from cwd.cli.common import key_options
from cwd.cli.daemons import become_daemon, plain_name, settings
from cwd.config import client_endpoint
from cwd.gateway.options import GatewayOptions


@click.command()
@settings(GatewayOptions, convert=True)
@key_options
def gateway(**flags: Any) -> int:
    """Serve HTTP: the Open Inference Protocol v2 with binary tensors, and a status page."""
    names = {plain_name(field.name): field.name for field in dataclasses.fields(GatewayOptions)}
    given = {names[name]: value for name, value in flags.items() if value is not None}
    options = GatewayOptions(**{"endpoint": client_endpoint(), **given})
    from cwd.gateway.server import serve

    become_daemon()
    return serve(options)
