"""`cwd gateway`: the HTTP front door. Flags are made from its own record of settings, as those of the other daemons."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from cwd.cli.common import key_options
from cwd.cli.daemons import become_daemon, plain_name, reread, settings
from cwd.config import client_endpoint
from cwd.gateway.options import GatewayOptions


@click.command()
@settings(GatewayOptions, convert=True)
@key_options
@click.pass_context
def gateway(ctx: click.Context, **flags: Any) -> int:
    """Serve HTTP: the Open Inference Protocol v2 with binary tensors, and a status page."""
    become_daemon()
    options = _options(flags)
    from cwd.gateway.server import serve

    return serve(options, lambda: _options({**flags, **reread(ctx)}))


def _options(flags: dict[str, Any]) -> GatewayOptions:
    names = {plain_name(field.name): field.name for field in dataclasses.fields(GatewayOptions)}
    given = {names[name]: value for name, value in flags.items() if name in names and value is not None}
    return GatewayOptions(**{"endpoint": client_endpoint(), **given})
