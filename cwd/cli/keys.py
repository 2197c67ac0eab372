"""`cwd keys`: the folder that says who may connect. Works on files alone; a running controller follows by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cwd.cli.common import emit, json_option, say, table
from cwd.net.keys import ROLES, KeyFolder, default_folder

folder_option = click.option("--dir", "folder", envvar="CWD_KEYS", type=click.Path(path_type=Path), default=default_folder,
                             show_default="/etc/cwd/keys, or ~/.config/cwd/keys", metavar="FOLDER",
                             help="The folder of keys, which `cwd controller --keys` names.")
_role = click.Choice(ROLES)


@click.group()
def keys() -> None:
    """Make, list and revoke keys of clients, workers and admins.

    A controller with `--keys FOLDER` lets in who has a key that is listed there, and follows the folder within a second.
    """


@keys.command()
@click.argument("name")
@click.option("--role", "roles", type=_role, multiple=True, required=True, help="What the key may be; give it again for "
              "several.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Where the secret key goes. "
              "[default: secret/NAME.key_secret in the folder]")
@folder_option
@json_option
def new(name: str, roles: tuple[str, ...], out: Path | None, folder: Path, as_json: bool) -> None:
    """Make a key and list it. The first one makes the controller's own pair as well."""
    place = KeyFolder(folder)
    server = place.make_server()
    if server is not None:
        say(f"the controller's own pair is new: {folder / 'server.key_secret'}")
    files = place.new(name, roles, out)
    facts: dict[str, Any] = {"name": name, "roles": list(roles), "secret": files["secret"],
                             "public": [files[role] for role in roles], "server_public": str(folder / "server.key")}
    emit(facts, as_json, [
        f"{name} may be {' and '.join(roles)}: {', '.join(facts['public'])}",
        f"for {name} alone: {facts['secret']}   (CWD_KEY, --key)",
        f"for everybody:  {facts['server_public']}   (CWD_SERVER_KEY, --server-key)"])


@keys.command("list")
@folder_option
@json_option
def list_keys(folder: Path, as_json: bool) -> None:
    """What is listed, and what was revoked."""
    rows = KeyFolder(folder).entries()
    emit({"folder": str(folder), "keys": rows}, as_json, table(
        ["name", "role", "public key"], [[row["name"], row["role"], row.get("public") or row["fault"]] for row in rows]))


@keys.command()
@click.argument("name")
@click.option("--role", "roles", type=_role, multiple=True, help="Take away this role only; give it again for several.  "
              "[default: all]")
@folder_option
@json_option
def revoke(name: str, roles: tuple[str, ...], folder: Path, as_json: bool) -> None:
    """Take a key's roles away. Who is connected with it is turned out within a second."""
    had = KeyFolder(folder).revoke(name, roles or ROLES)
    emit({"name": name, "revoked": had}, as_json, [f"{name} is no longer {' or '.join(had)}"])
