"""`cwd app`: applications on disk, which gateways and programs that serve them follow by themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cwd.cli.common import DURATION, emit, json_option, table
from cwd.errors import Code, CwdError
from cwd.units import format_duration

if TYPE_CHECKING:
    from cwd.selection.apps import App, AppStore
    from cwd.selection.states import States

_store = click.option("--store", "path", envvar="CWD_APPS", metavar="FILE", help="The file of applications. "
                      "[default: /var/lib/cwd/apps.db for root, else ~/.local/state/cwd/apps.db]")
_states = click.option("--states", envvar="CWD_STATES", default="", metavar="URL", help="What the gateways were given: "
                       "redis://HOST. [default: the file beside the applications]")
_policy = click.option("--policy", metavar="NAME", help="static, epsilon_greedy, ucb1, thompson, exp3 or exp4.")
_parameters = click.option("--parameters", metavar="JSON", help="The policy's parameters, such as "
                           "'{\"eta\": 0.1}'. [default: its paper's; for exp3 and exp4 what `cwd bench tuning` chose]")


def _fields(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what an app is."""
    options = [
        _policy, _parameters,
        click.option("--combine", type=click.Choice(["vote", "mean"]), help="How the answers of several members become one."),
        click.option("--scale", type=float, help="For mean: the standard deviation at which no confidence is left."),
        click.option("--output", metavar="NAME", help="The output that is combined and judged. [default: the first]"),
        click.option("--loss", metavar="NAME", help="zero_one, absolute, squared or log."),
        click.option("--loss-parameters", metavar="JSON", help="The loss's parameters, such as '{\"scale\": 10}'."),
        click.option("--slo", type=DURATION, help="Of requests that bring none. [default: 100ms]"),
        click.option("--default", metavar="JSON", help="What is answered where no model can; always marked. [default: none]"),
        click.option("--confidence", type=click.FloatRange(0, 1), help="With less, the default is answered."),
        click.option("--cache/--no-cache", default=None, help="Keep answers, and execute equal requests once."),
        click.option("--ttl", type=DURATION, help="Kept answers that are older do not count. [default: no limit]"),
        click.option("--context", type=click.Choice(["app", "user", "session"]), help="Who has a state of its own."),
    ]
    return functools.reduce(lambda made, option: option(made), reversed(options), command)


@click.group()
def app() -> None:
    """Applications: a name, models, a policy that chooses among them, an SLO, perhaps a default.

    A gateway serves an application like a model of its name; `cwd.Apps` serves it to a Python program.
    """


@app.command()
@click.argument("name")
@click.argument("models", nargs=-1)
@_fields
@click.option("--replace", is_flag=True, help="Take the place of an application of that name. Its states are not taken over.")
@_store
@json_option
def create(name: str, models: tuple[str, ...], replace: bool, path: str | None, as_json: bool, **given: Any) -> None:
    """Make application NAME of MODELS, each a name or NAME/VERSION."""
    from cwd.selection.apps import App, Member

    made = App(name, tuple(map(Member.parse, models)), **_given(given))
    with _opened(path) as store:
        store.create(made, replace=replace)
        _show(store.get(name), as_json)


@app.command()
@click.argument("name")
@_fields
@_store
@json_option
def change(name: str, path: str | None, as_json: bool, **given: Any) -> None:
    """Change what is given of application NAME, and leave the rest."""
    with _opened(path) as store:
        _show(store.change(name, **_given(given)), as_json)


@app.command()
@click.argument("name")
@click.argument("models", nargs=-1, required=True)
@_store
@json_option
def link(name: str, models: tuple[str, ...], path: str | None, as_json: bool) -> None:
    """Add MODELS to application NAME; they start with the mean weight of those that are there."""
    from cwd.selection.apps import Member

    with _opened(path) as store:
        _show(store.link(name, list(map(Member.parse, models))), as_json)


@app.command()
@click.argument("name")
@click.argument("models", nargs=-1, required=True)
@_store
@json_option
def unlink(name: str, models: tuple[str, ...], path: str | None, as_json: bool) -> None:
    """Take MODELS out of application NAME."""
    from cwd.selection.apps import Member

    with _opened(path) as store:
        _show(store.unlink(name, list(map(Member.parse, models))), as_json)


@app.command("ls")
@_store
@json_option
def list_apps(path: str | None, as_json: bool) -> None:
    """What there is."""
    with _opened(path) as store:
        apps = store.all()
    rows = [[a.name, a.policy, len(a.members), format_duration(a.slo_ns), "yes" if a.default is not None else "no",
             "yes" if a.cache else "no", ", ".join(map(str, a.members))] for a in apps]
    emit({"store": str(store.path), "apps": [_facts(a) for a in apps]}, as_json,
         table(["name", "policy", "models", "slo", "default", "cache", "members"], rows))


@app.command()
@click.argument("name")
@_states
@_store
@json_option
def show(name: str, states: str, path: str | None, as_json: bool) -> None:
    """What application NAME is, and what its policy has learned."""
    with _opened(path) as store:
        found = store.get(name)
    facts = _facts(found)
    with _learned(store, states) as learned:
        if learned is not None:
            facts["states"] = [{"context": context, "observations": entry.version, "members": list(entry.members),
                                "plays": list(entry.state.plays), "losses": list(entry.state.losses),
                                "log_weights": [max(weight, -1e300) for weight in entry.state.log_weights]}
                               for key, context, entry in learned.entries() if key == found.key]
    lines = [f"{key}: {value}" for key, value in facts.items() if key != "states"]
    for row in facts.get("states", []):
        lines.append(f"state{' of ' + row['context'] if row['context'] else ''} after {row['observations']} feedbacks:")
        columns = {"member": row["members"], **_learned_columns(row)}
        lines += [f"  {line}" for line in table(list(columns), list(zip(*columns.values(), strict=True)))]
    emit(facts, as_json, lines)


def _learned_columns(row: dict[str, Any]) -> dict[str, list[float]]:
    """What a policy learns by: some count and have no weights, others weigh and count nothing. Columns of zeros say nothing."""
    counts = {"plays": row["plays"], "losses": row["losses"]} if any(row["plays"]) else {}
    weights = {"log weight": row["log_weights"]} if any(row["log_weights"]) or not counts else {}
    return {**counts, **weights}


@app.command()
@click.argument("name")
@_states
@_store
@json_option
def rm(name: str, states: str, path: str | None, as_json: bool) -> None:
    """Forget application NAME and what its policy has learned; its feedback log stays."""
    with _opened(path) as store:
        key = store.get(name).key
        store.remove(name)
    with _learned(store, states) as learned:
        if learned is not None:
            learned.forget(key)
    emit({"removed": name}, as_json, [f"removed {name}"])


@app.command("replay-feedback")
@click.argument("name")
@_policy
@_parameters
@click.option("--seed", default=0, show_default=True, help="Of the choices that an evaluation draws.")
@click.option("--confidence", default=0.95, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Of the intervals.")
@_store
@json_option
def replay_feedback(name: str, policy: str | None, parameters: str | None, seed: int, confidence: float, path: str | None,
                    as_json: bool) -> None:
    """What another policy would have lost on the feedback of application NAME: IPS, SNIPS, doubly robust."""
    from cwd.selection.desk import feedback_folder
    from cwd.selection.feedback import histories
    from cwd.selection.losses import make_loss
    from cwd.selection.offpolicy import evaluate
    from cwd.selection.policies import make_policy

    with _opened(path) as store:
        found = store.get(name)
    told = histories(feedback_folder(Path(store.path).parent), found.key)
    if not told:
        raise CwdError(f"there is no feedback on {name} yet", code=Code.BAD_ARGUMENT)
    given = _object(parameters, "--parameters") if parameters is not None else ({} if policy else dict(found.parameters))
    judged = make_policy(policy or found.policy, given)
    facts: dict[str, Any] = {"app": name, "policy": judged.name, "parameters": judged.parameters(), "logged_by": found.policy,
                             **evaluate(told, judged, seed=seed, confidence=confidence, kind=found.combine or "vote",
                                        loss=make_loss(found.loss, found.loss_parameters)).facts()}
    # of a bounded log (--feedback-keep) only what is left can be judged by
    facts["dropped"] = any(not history.complete for history in told)
    lines = [f"{judged.name} on {facts['records']} feedbacks of {name}, of which it learned from {facts['learned']}:"]
    if facts["dropped"]:
        lines.append("older feedback was dropped to keep within a bound, and is not in this")
    if facts["incomplete"]:
        lines.append(f"{facts['incomplete']} more say nothing: a member was asked and its loss is not known")
    if facts["unsupported"]:
        lines.append(f"it would ask members that could not have been asked with a probability of {facts['unsupported']:.3g}: "
                     "no estimate knows of those")
    rows = [[key, *(facts[key][word] for word in ("loss", "low", "high"))] for key in ("logged", "ips", "snips", "dr")]
    emit(facts, as_json, [*lines, *table(["estimate", "mean loss", "low", "high"], rows)])


def _opened(path: str | None) -> AppStore:
    from cwd.selection.apps import AppStore

    return AppStore(path or None)


@contextlib.contextmanager
def _learned(store: AppStore, where: str) -> Iterator[States | None]:
    """The policies' states; None where there is no file of them: it is not made by a look."""
    from cwd.selection.desk import open_states

    folder = Path(store.path).parent
    if not where and not (folder / "states.db").exists():
        yield None
        return
    with contextlib.closing(open_states(where, folder)) as states:
        yield states


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What was given, by the names of the app's fields."""
    names = {"slo": "slo_ns", "ttl": "ttl_ns", "confidence": "confidence_min"}
    found = {names.get(name, name): value for name, value in options.items() if value is not None}
    for name in ("parameters", "loss_parameters"):
        if name in found:
            found[name] = _object(found[name], "--" + name.replace("_", "-"))
    return found


def _object(text: str, flag: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{flag} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.UsageError(f"{flag} is no object of JSON")
    return found


def _facts(found: App) -> dict[str, Any]:
    facts = dataclasses.asdict(found)
    return {**facts, "members": list(map(str, found.members)), "parameters": dict(found.parameters)}


def _show(found: App, as_json: bool) -> None:
    emit(_facts(found), as_json, [f"{found.name}: {found.policy} over {', '.join(map(str, found.members)) or 'no models yet'}, "
                                  f"SLO {format_duration(found.slo_ns)}"])
