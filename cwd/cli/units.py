"""`cwd install-units`: the systemd units, users and folders of this machine's daemons."""

from __future__ import annotations

from pathlib import Path

import click

from cwd.cli.common import emit, json_option, say


@click.command("install-units")
@click.option("--dry-run", is_flag=True, help="Write nothing; show every file on stdout.")
@click.option("--root", type=click.Path(path_type=Path), default="/", show_default=True, help="Write below this folder, "
              "for packages and images.")
@click.option("--user", default="cwd", show_default=True, help="Whom the daemons run as.")
@click.option("--config", default="/etc/cwd/cwd.toml", show_default=True, help="The daemons' configuration; an example is "
              "written if there is none.")
@click.option("--force", is_flag=True, help="Overwrite units that this command has not written (never the configuration).")
@json_option
def install_units(dry_run: bool, root: Path, user: str, config: str, force: bool, as_json: bool) -> None:
    """Write systemd units for this installation of cwd."""
    from cwd.cluster import unit_files

    machine = unit_files.this_machine(user, config)
    found = unit_files.files(machine, root)
    if dry_run and not as_json:
        for path, text in found.items():
            click.echo(f"# {path}\n{text}")
        return
    written, kept = (list(found), []) if dry_run else unit_files.install(found, force)
    notes = unit_files.notes(machine)
    then = ["systemd-sysusers", "systemd-tmpfiles --create", "systemctl daemon-reload",
            "systemctl enable cwd.target cwd-controller cwd-worker@0   # a worker for each GPU; cwd-worker: on the CPU",
            "systemctl start cwd.target"]
    lines = [f"wrote {path}" for path in written] + [f"kept {path}" for path in kept]
    if root == Path("/"):
        lines += ["", f"Look at {config}, and then:", *(f"  {command}" for command in then)]
    emit({"written": [str(path) for path in written], "kept": [str(path) for path in kept], "next": then, "notes": notes,
          "dry_run": dry_run}, as_json, lines)
    for note in notes:
        say(f"note: {note}")
