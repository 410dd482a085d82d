"""The verbs of the command line: parse, call the flow, print. Exit codes: 0 fine, 1 act, 2 broken."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from palan import __version__
from palan.cli.show import ACT, FINE, model_lines, plain, registered_line, registered_versions, tell, where
from palan.cli.show import print_value as _print
from palan.cli.show import status as show_status
from palan.cli.show import verdict as _verdict
from palan.errors import PalanError, nearest

if TYPE_CHECKING:
    from palan.flows.project import Project
    from palan.flows.quarantine import Asked


REASONS = 5
"""Broken rules that are shown of one delivery; the most frequent of all its files first."""

LISTED = 20
"""Rows, or other things, that are listed for a person; --json has all of them."""


class ReaderLeft(Exception):
    """Whoever reads what we print (head, less) has seen enough. Click would call a broken pipe a failure."""


class Verbs(click.Group):
    """The commands in the order of the loop, a hint for a mistyped one, and errors of three lines at the most."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise PalanError(f'palan has no verb "{args[0]}"', nearest(args[0], self.commands) or "palan --help")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        gc.enable()
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderLeft from error


@click.group(cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="palan %(version)s")
@click.option("--project", "-p", metavar="FOLDER", help="The project's folder; else the current one or a parent of it.")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, project: str | None, debug: bool) -> None:
    """Take any decision model from a notebook to production, and keep it right there.

    Without a verb, palan says where you are and what to do next.
    """
    ctx.obj = {"project": project, "debug": debug}
    if plain():
        ctx.color = False
    if ctx.invoked_subcommand is None:
        where(project)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        code = cli.main(list(arguments), prog_name="palan", standalone_mode=False)
    except ReaderLeft:
        raise BrokenPipeError from None
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "palan"
        raise PalanError(error.format_message(), f"{command} --help") from error
    return code if isinstance(code, int) else FINE


def _open(ctx: click.Context, *, quiet: bool = False) -> Project:
    from palan.flows.project import open_project, silent

    return open_project(ctx.obj["project"], tell=silent if quiet else tell)


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print rows as a table; in a pipe without colour, in a narrow terminal wrapped."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in columns.values():
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    Console(highlight=False, color_system=None if plain() else "auto").print(table)


def _cell(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.5g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value))


@cli.command()
@click.argument("source", required=False, metavar="[FILE]")
@click.option(
    "--kind",
    metavar="KIND",
    type=click.Choice(["estimator", "program", "rules", "heuristic", "policy"]),
    help="Template: estimator, program, rules, heuristic or policy.",
)
@click.option("--into", default=".", metavar="FOLDER", show_default=True, help="Folder of the project; made if needed.")
@_json
def init(source: str | None, kind: str | None, into: str, as_json: bool) -> None:
    """Make a project: from a template of one kind, or around what you have.

    FILE is Python code, a decision table, or a table of data (.csv, .parquet); without one, a table that lies in the
    folder is taken. Nothing is overwritten.

    \b
    Example:  palan init --kind estimator --into prices
              palan init notebook_code.py
    """
    from palan.flows.init import init as verb

    def show(made: dict[str, Any]) -> None:
        for path in made["files"]:
            click.echo(f"made {path}")
        for each in made["missing"]:
            click.echo(f"missing: {each}")
        click.echo(f"next: {made['next']}")

    _print(verb(into, source=source or "", kind=kind or ""), as_json, show)


@cli.command()
@click.argument("data", required=False)
@_json
@click.pass_context
def ingest(ctx: click.Context, data: str | None, as_json: bool) -> None:
    """Take in new files of DATA (of all tables without a name), verify every row, quarantine the broken ones.

    \b
    Example:  palan ingest weather
    """
    from palan.core import counted
    from palan.flows.ingest import ingest as verb

    def show(reports: list[dict[str, Any]]) -> None:
        for each in reports:
            corrected = f", {each['corrections']:,} corrected" if each.get("corrections") else ""
            text = f"{counted(each['rows'], 'new row')}{corrected}, {each['quarantined']:,} in quarantine" if each["files"] else each["text"]
            click.echo(f"{each['version'] or each['data']}: {text}")
            reasons = sorted(each.get("reasons", {}).items(), key=lambda each: -each[1])
            for reason, count in reasons[:REASONS]:
                click.echo(f"  {count:,} x {reason}")
            if len(reasons) > REASONS:
                click.echo(f"  … and {len(reasons) - REASONS:,} more rules")
            for line in dict.fromkeys([*each.get("resolved", []), *each.get("warnings", [])] if each["files"] else []):
                click.echo(f"  {line}")
            if each.get("waiting", 0) > each["quarantined"]:
                click.echo(f"  in quarantine in all: {each['waiting']:,}")
        steps = dict.fromkeys(each["next"] for each in reports if each["next"])
        odd = [step for step in steps if step.startswith("palan why")]
        if steps:
            click.echo(f"next: {'   and: '.join(odd or list(steps)[:1])}")

    _print(verb(_open(ctx, quiet=as_json), data or ""), as_json, show)


@cli.command()
@click.argument("data")
@click.option("--column", default="", metavar="COLUMN", help="Only what is suspected of this column.")
@click.option("--reason", required=True, help="Why, for the ledger.")
@_json
@click.pass_context
def accept(ctx: click.Context, data: str, column: str, reason: str, as_json: bool) -> None:
    """Say that what is suspected of DATA is no fault: it means this now. `palan why DATA` shows what is suspected.

    \b
    Example:  palan accept weather --reason "the station reports in °C since May"
    """
    from palan.flows.accept import accept as verb

    def show(made: dict[str, Any]) -> None:
        for each in made["accepted"]:
            click.echo(f"accepted: {each}")
        click.echo(f"{made['version']}: the same rows; in the ledger: {made['reason']}")
        click.echo("next: palan status")

    _print(verb(_open(ctx, quiet=as_json), data, column=column, reason=reason), as_json, show)


def _param(text: str) -> tuple[str, Any]:
    import msgspec

    name, equals, value = text.partition("=")
    if not equals:
        raise PalanError(f'"{text}" sets no parameter', "write --param learning_rate=0.05")
    try:
        return name, msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return name, value


@cli.command()
@click.argument("model")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Override a parameter of palan.toml.")
@click.option("--since", metavar="DATE", help="Learn only from rows since then.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
@click.option("--verify", default=None, metavar="SHARE", help='Do this share of the recorded steps again ("5%"), to see whether they give the same.')
@click.option("--reason", default="", help="Why, for the ledger.")
@_json
@click.pass_context
def build(
    ctx: click.Context, model: str, params: tuple[str, ...], since: str | None, seed: int, verify: str | None, reason: str, as_json: bool
) -> None:
    """Make a version of MODEL from its code and the newest data; go on where a killed build stopped.

    \b
    Example:  palan build delay --param learning_rate=0.05 --reason "slower, steadier"
    """
    from palan.flows.build import build as verb

    def show(made: dict[str, Any]) -> None:
        news = "" if made["new"] else ": nothing changed, it was there"
        click.echo(f"{made['version']} ({made['kind']}){news}")
        for name, value in made["metrics"].items():
            click.echo(f"  {name} {value:,.5g}")
        click.echo(f"next: palan check {made['version']}")

    values = dict(_param(each) for each in params)
    made = verb(_open(ctx, quiet=as_json), model, params=values, since=_time(since), seed=seed, reason=reason, verify=_config_value("share", verify) or 0.0)
    _print(made, as_json, show)


def _time(text: str | None) -> Any:
    from palan.core import unstamp

    try:
        return unstamp(text) if text else None
    except ValueError as error:
        raise PalanError(f'"{text}" is no date', "write it as 2013-05-01") from error


@cli.command()
@click.argument("model", metavar="MODEL[@VERSION]")
@click.option("--against", default="champion", show_default=True, metavar="VERSION", help="What to compare with.")
@_json
@click.pass_context
def check(ctx: click.Context, model: str, against: str, as_json: bool) -> None:
    """Judge a version by its gates. Exit code 1 unless the verdict is pass.

    \b
    Example:  palan check delay@3 --against delay@2
    """
    from palan.flows.check import check as verb

    report = verb(_open(ctx, quiet=True), model, against=against)

    def show(report: dict[str, Any]) -> None:
        against = f" against {report['against']}" if report["against"] else ""
        click.echo(f"{report['version']}{against}: {_verdict(report['verdict'])}")
        for each in report["findings"]:
            click.echo(f"  {_verdict(each['verdict'])}  {each['gate']}: {each['text']}")
        if report["next"]:
            click.echo(f"next: {report['next']}")

    _print(report, as_json, show)
    ctx.exit(FINE if report["verdict"] == "pass" else ACT)


def _config_value(read: str, text: str | None) -> Any:
    from palan.flows import config as reading

    if text is None:
        return None
    try:
        return getattr(reading, read)(text)
    except reading.Wrong as error:
        raise PalanError(f'"{text}" is not {error}', f"{click.get_current_context().command_path} --help") from error


@cli.command()
@click.argument("model", metavar="MODEL[@VERSION]")
@click.option("--share", metavar="SHARE", help='Begin as a canary of this share, such as "20%".')
@click.option("--for", "wait", metavar="TIME", help='How long the canary lasts, such as "7d".')
@click.option("--promote", is_flag=True, help="Make the canary the champion.")
@click.option("--roll-back", is_flag=True, help="Drop the canary, or return to the champion before.")
@click.option("--force", is_flag=True, help="Release against the gates; needs a reason.")
@click.option("--reason", default="", help="Why, for the ledger.")
@_json
@click.pass_context
def release(
    ctx: click.Context,
    model: str,
    share: str | None,
    wait: str | None,
    promote: bool,
    roll_back: bool,
    force: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Say which version answers: at once, as a canary, promoted, or rolled back.

    \b
    Example:  palan release delay@4 --share 20% --for 7d --reason "learnt the spring"
    """
    from palan.flows.release import release as verb

    name, _, version = model.partition("@")
    made = verb(
        _open(ctx, quiet=True),
        name,
        version=version,
        share=_config_value("share", share),
        wait=_config_value("duration", wait),
        promote=promote,
        roll_back=roll_back,
        force=force,
        reason=reason,
    )

    def show(made: dict[str, Any]) -> None:
        for arm in made["arms"]:
            click.echo(f"{arm['version']} is {arm['role']} with {arm['share']:.0%} of the requests")
        if made["until"]:
            click.echo(f"the canary is judged after {made['until'][:16]}")
        click.echo(f"next: palan status {made['model']}")

    _print(made, as_json, show)


@cli.command()
@click.option("--host", default="", help="Address to listen on; else PALAN_HOST, else 127.0.0.1.")
@click.option("--port", type=int, help="Port; else PALAN_PORT, else 7070.")
@click.pass_context
def serve(ctx: click.Context, host: str, port: int | None) -> None:
    """Answer over HTTP until Ctrl-C or SIGTERM; pages at the same address.

    \b
    Example:  palan serve --port 7071
    """
    from palan.flows.serve import serve as verb

    verb(_open(ctx), host, port, ready=lambda server: click.echo(f"answering at {server.url}"))


def _document(path: str) -> Any:
    from palan.data.inputs import parsed

    try:
        with click.open_file(path, "rb") as file:
            document = file.read()
    except OSError as error:
        raise PalanError(f"{path} cannot be read: {error.strerror}", "give a JSON file, or - for standard input") from error
    return parsed(document, path)


@cli.command()
@click.argument("model")
@click.option("--input", "-i", "path", required=True, metavar="FILE", help="JSON: rows, or one instance; - is standard input.")
@_json
@click.pass_context
def decide(ctx: click.Context, model: str, path: str, as_json: bool) -> None:
    """Answer the rows or the instance in a file, exactly as the server would, log included.

    \b
    Example:  palan decide gates --input instances/2013-01-15-EWR.json
    """
    from palan.flows.decide import decide as verb
    from palan.flows.packages import find_version
    from palan.models.contract import SHAPE

    project = _open(ctx, quiet=True)
    document = _document(path)
    rows = SHAPE[find_version(project, model).kind] == "rows"
    value = [document] if rows and isinstance(document, dict) and not isinstance(next(iter(document.values()), 0), list) else document
    made = verb(project, model, **({"rows": value} if rows else {"instance": document}))
    no_plan = not rows and made["outputs"] is None

    def show(made: dict[str, Any]) -> None:
        import msgspec

        click.echo(_why_no_plan(made) if no_plan else msgspec.json.format(msgspec.json.encode(made["outputs"]), indent=2).decode())
        click.echo(f"decision {made['decision']} by {made['version']}", err=True)

    _print(made, as_json, show)
    ctx.exit(ACT if no_plan else FINE)


def _why_no_plan(made: Mapping[str, Any]) -> str:
    """Say what became of an instance without a plan, and why where that is known."""
    faults = made.get("evidence", {}).get("faults", [])
    reason = made.get("explain", {}).get("text") or "; ".join(faults[:5]) or made.get("degraded", "")
    return f"{made['status']}: {reason}" if reason else str(made["status"])


FEW = 1000
"""Outcomes up to which `palan outcomes` looks in the log for what they are of."""


@cli.command()
@click.argument("model")
@click.option("--input", "-i", "path", required=True, metavar="FILE", help='JSON: {"key": outcome, ...}; - is standard input.')
@click.option("--by", type=click.Choice(["key", "id"]), default="key", show_default=True, help="What names a decision.")
@_json
@click.pass_context
def outcomes(ctx: click.Context, model: str, path: str, by: str, as_json: bool) -> None:
    """Tell what really happened, by the caller's key or by decision id. Telling again corrects.

    \b
    Example:  echo '{"2013-05-01-UA1545-EWR-0515": 1}' | palan outcomes delay --input -
    """
    from palan.flows.decide import outcomes as verb

    document = _document(path)
    if not isinstance(document, dict):
        raise PalanError(f"{path} holds no object of outcomes", '{"key": outcome, ...}')
    names = {"keys" if by == "key" else "ids": list(document)}
    project = _open(ctx, quiet=True)
    made: dict[str, Any] = {"model": model, "told": verb(project, model, list(document.values()), **names)}
    if made["told"] <= FEW:
        from palan.flows.history import matched

        made["matched"] = matched(project, model, list(document), by)

    def show(made: dict[str, Any]) -> None:
        waiting = made["told"] - made.get("matched", made["told"])
        said = f": {made['matched']:,} matched, {waiting:,} {'is' if waiting == 1 else 'are'} waiting for a decision" if waiting else ""
        click.echo(f"{made['told']:,} outcomes of {model}{said}")

    _print(made, as_json, show)


@cli.command()
@click.argument("model", metavar="MODEL[@VERSION|@.]")
@click.option("--on", default="last:1000", show_default=True, metavar="WINDOW", help="last:N, last:Nd, FROM..TO, or a file of rows.")
@click.option("--against", default="champion", show_default=True, metavar="VERSION", help='A version, the champion, or "logged": what was answered then.')
@_json
@click.pass_context
def replay(ctx: click.Context, model: str, on: str, against: str, as_json: bool) -> None:
    """Run a version (@. is the working tree) over recorded decisions and show what would change.

    \b
    Example:  palan replay delay@. --on 2013-05..2013-06 --against champion
    """
    from palan.flows.replay import replay as verb

    def show(report: dict[str, Any]) -> None:
        against = "what was answered then" if report["against"] == "logged" else report["against"]
        click.echo(f"{report['version']} against {against} on {report['on']}: {report['text']}")
        for each in report.get("examples", []):
            click.echo(f"  {each['key']}: {each['old']} -> {each['new']}")

    project = _open(ctx, quiet=True)
    file = project.root / on
    rows = {"file": file} if file.is_file() else {"on": on}
    _print(verb(project, model, against=against, **rows), as_json, show)


@cli.command()
@click.argument("model", required=False)
@_json
@click.pass_context
def watch(ctx: click.Context, model: str | None, as_json: bool) -> None:
    """Compare the newest windows of decisions with the reference. Exit code 1 while an alarm is open.

    \b
    Example:  palan watch delay
    """
    from palan.flows.watch import watch as verb

    reports = verb(_open(ctx, quiet=True), model or "")

    def show(reports: list[dict[str, Any]]) -> None:
        for each in reports:
            click.echo(f"{each['model']}: {each['text']}")
            for alarm in each["alarms"]:
                click.echo(f"  {alarm['lane']} {alarm['id'][:12]}: {alarm['what']}")
                click.echo(f"    {alarm['diagnosis']}: {alarm['because']}")

    _print(reports, as_json, show)
    ctx.exit(ACT if any(each["open"] for each in reports) else FINE)


@cli.command()
@click.argument("model")
@click.option("--dry-run", is_flag=True, help="Try the remedies and show them; change nothing.")
@click.option("--approve", is_flag=True, help="Release the remedy that is proposed.")
@click.option("--reject", is_flag=True, help="Close the proposal without acting.")
@click.option("--reason", default="", help="Why, for the ledger.")
@_json
@click.pass_context
def react(
    ctx: click.Context, model: str, dry_run: bool, approve: bool, reject: bool, reason: str, as_json: bool
) -> None:
    """Try the remedies for MODEL's open alarms by replay, and propose or release the best. Exit code 1: a person is asked.

    \b
    Example:  palan react delay --dry-run
    """
    from palan.flows.react import react as verb

    report = verb(_open(ctx, quiet=as_json), model, dry_run=dry_run, approve=approve, reject=reject, reason=reason)

    def show(report: dict[str, Any]) -> None:
        click.echo(report["text"])
        for each in report["remedies"]:
            columns = {"name": "remedy", "gain": "gain", "low": "low", "high": "high", "cost": "cost", "verdict": ""}
            _table(each["candidates"], columns)
            click.echo(f"{each['status']}: {each['choice']}: {each['reason']}")

    _print(report, as_json, show)
    ctx.exit(ACT if any(each["status"] == "proposed" for each in report["remedies"]) else FINE)


@cli.command()
@_json
@click.pass_context
def tick(ctx: click.Context, as_json: bool) -> None:
    """Do whatever is due, once, however many machines call it: ingest, watch, react, judge canaries.

    Exit code 1 when something of it failed; the rest is done, and what failed is tried again at the next tick.

    \b
    Example:  */5 * * * *  palan --project /srv/flights tick
    """
    from palan.flows.tick import tick as verb

    def show(done: list[dict[str, Any]]) -> None:
        for each in done:
            click.echo(f"{each['what']}: {each['text']}")
        if not done:
            click.echo("nothing is due")

    done = verb(_open(ctx, quiet=True))
    _print(done, as_json, show)
    ctx.exit(ACT if any("hint" in each for each in done) else FINE)


@cli.command()
@click.argument("step")
@_json
@click.pass_context
def retry(ctx: click.Context, step: str, as_json: bool) -> None:
    """Let STEP be tried again, which was given up because it failed, or died with its process, too often in a row.

    \b
    Example:  palan retry "fit delay"
    """
    from palan.flows.journal import retry as verb

    _print(verb(_open(ctx, quiet=True), step), as_json, lambda made: click.echo(f"{made['step']} will be tried again; before: {made['reasons'][0]}"))


@cli.command()
@click.option("--host", default="", help="Address to listen on; else PALAN_HOST, else 127.0.0.1.")
@click.option("--port", type=int, help="Port; else PALAN_PORT, else 7070.")
@click.option("--every", default=60.0, show_default=True, metavar="SECONDS", help="How often to tick.")
@click.pass_context
def up(ctx: click.Context, host: str, port: int | None, every: float) -> None:
    """Serve, show the pages and tick, all in one process, until Ctrl-C or SIGTERM.

    \b
    Example:  palan up
    """
    from palan.flows.up import up as verb

    verb(_open(ctx), host, port, every=every, ready=lambda server: click.echo(f"up at {server.url}"))


@cli.command()
@click.argument("model", required=False)
@_json
@click.pass_context
def status(ctx: click.Context, model: str | None, as_json: bool) -> None:
    """Is everything right in production, and if not, what to do? Exit code 1 when something is wrong.

    \b
    Example:  palan status --json
    """
    project = _open(ctx, quiet=True)
    if not model:
        ctx.exit(show_status(project, as_json))
    from palan.flows.registered import known
    from palan.flows.status import model_page, registered_page

    def show(page: dict[str, Any]) -> None:
        model_lines([page["model"]])
        if page["registered"]:
            click.echo("registered by MLflow clients under the same name, apart from palan's versions:")
            registered_versions(page["registered"])

    def show_registered(page: dict[str, Any]) -> None:
        registered_line(page["model"])
        registered_versions(page["model"]["versions"])
        click.echo(f"next: {page['model']['next']}")

    if model not in project.config.models and known(project, model):
        _print(registered_page(project, model), as_json, show_registered)
        return
    page = model_page(project, model)
    _print(page, as_json, show)
    ctx.exit(ACT if page["model"]["verdict"] == "wrong" else FINE)


@cli.command()
@click.argument("subject")
@_json
@click.pass_context
def why(ctx: click.Context, subject: str, as_json: bool) -> None:
    """Explain an alarm, a decision, a version or a step: what changed, and on what evidence.

    \b
    Example:  palan why delay@2
    """
    from palan.flows.why import why as verb

    def show(found: dict[str, Any]) -> None:
        if "text" in found:
            click.echo(found["text"])
            return
        for name, value in found.items():
            if isinstance(value, list) and value:
                click.echo(f"{name}:")
                for each in value[:LISTED]:
                    click.echo(f"  {each['text'] if name == 'quarantine' else each}")
                if len(value) > LISTED:
                    click.echo(f"  … and {len(value) - LISTED:,} more: palan why {subject} --json")
            elif value not in ({}, [], "", None):
                click.echo(f"{name}: {value}")

    _print(verb(_open(ctx, quiet=True), subject), as_json, show)


@cli.command("log")
@click.argument("subject", required=False)
@click.option("--limit", default=50, type=click.IntRange(1, 10**9), show_default=True, help="How many of the newest entries.")
@click.option("--verify", is_flag=True, help="Walk the whole chain and name every edited, removed or reordered entry.")
@_json
@click.pass_context
def log_command(ctx: click.Context, subject: str | None, limit: int, verify: bool, as_json: bool) -> None:
    """Read the ledger: who did what, when, and why. With --verify exit code 1 if the chain is broken.

    \b
    Example:  palan log delay --limit 10
    """
    from palan.flows.log import log as verb

    found = verb(_open(ctx, quiet=True), subject or "", limit=limit, verify=verify)

    def show(found: dict[str, Any]) -> None:
        for each in found["entries"]:
            click.echo(each["sentence"])
        if not found["entries"]:
            click.echo("nothing is in the ledger yet; a build or an ingest writes the first entry")
        if verify:
            click.echo(f"{found['total']} entries, {len(found['breaks'])} breaks")
            for each in found["breaks"]:
                click.secho(each["what"], fg="red")

    _print(found, as_json, show)
    ctx.exit(ACT if found["breaks"] else FINE)


@cli.command()
@_json
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Read everything that the store holds: records, ledger, blocks, blobs. Name each damage, with what to do about it.

    Exit code 1 when something is damaged or missing.

    \b
    Example:  palan verify --json
    """
    from palan.flows.verify import verify as verb

    found = verb(_open(ctx, quiet=as_json))

    def show(found: dict[str, Any]) -> None:
        for each in found["findings"]:
            click.echo(f"{click.style(each['part'], fg='red')}  {each['what']}; {each['next']}")
        click.echo(
            f"{found['records']:,} records, {found['entries']:,} entries of the ledger, {found['frames']:,} frames in {found['files']:,} files, "
            f"{found['blobs']:,} blobs, {found['bytes']:,} bytes: {len(found['findings']) or 'no'} finding{'' if len(found['findings']) == 1 else 's'}"
        )

    _print(found, as_json, show)
    ctx.exit(ACT if found["findings"] else FINE)


@cli.command()
@click.argument("file", metavar="FILE")
@_json
@click.pass_context
def backup(ctx: click.Context, file: str, as_json: bool) -> None:
    """Write the whole store to one FILE, as of now, while others go on. It holds the key: keep it secret.

    Exit code 1 when something that it copied was damaged already.

    \b
    Example:  palan backup /srv/backups/flights-$(date +%F).tar
    """
    from palan.flows.backup import backup as verb

    def show(made: dict[str, Any]) -> None:
        click.echo(f"{made['file']}: {made['bytes']:,} bytes, {made['files']:,} files, {made['blobs']:,} of them blobs")
        for each in made["damaged"]:
            click.secho(each, fg="red")
        if made["key"]:
            click.echo("it holds the key that signs versions and ledger: keep it as secret as the project itself")
        click.echo(f"next: {made['next']}")

    made = verb(_open(ctx, quiet=as_json), file)
    _print(made, as_json, show)
    ctx.exit(ACT if made["damaged"] else FINE)


@cli.command()
@click.argument("file", metavar="FILE")
@click.option("--into", default="", metavar="FOLDER", help="Folder of the project; else the current one. Made if needed.")
@_json
@click.pass_context
def restore(ctx: click.Context, file: str, into: str, as_json: bool) -> None:
    """Bring a backup back, every byte proven, as the store of a project that has none.

    A store that is there is never touched. Exit code 1 when the backup holds what was damaged when it was taken.

    \b
    Example:  palan restore /srv/backups/flights-2013-05-01.tar --into flights
    """
    from palan.flows.backup import restore as verb
    from palan.flows.project import silent

    def show(made: dict[str, Any]) -> None:
        click.echo(f"{made['store']}: {made['files']:,} files, {made['bytes']:,} bytes, as of {made['time'][:16]}")
        for each in made["findings"]:
            click.echo(f"{click.style(each['part'], fg='red')}  {each['what']}")
        click.echo(f"next: {made['next']}")

    made = verb(file, into or ctx.obj["project"] or "", tell=silent if as_json else tell)
    _print(made, as_json, show)
    ctx.exit(ACT if made["findings"] else FINE)


@cli.command("gc")
@click.option("--dry-run", is_flag=True, help="List what would go; change nothing.")
@click.option("--older-than", default="1d", show_default=True, metavar="TIME", help="Sweep only what was last put, or deleted, longer ago; longer than your longest build.")
@_json
@click.pass_context
def gc_command(ctx: click.Context, dry_run: bool, older_than: str, as_json: bool) -> None:
    """Sweep what nothing needs: deleted runs, blobs that nothing names, left-over temporary files; and join small segments.

    It may run beside everything else. Nothing that a run, a version, a data version or a job names is ever taken.

    \b
    Example:  palan gc --dry-run
    """
    from palan.core import counted
    from palan.flows.gc import gc as verb

    def show(found: dict[str, Any]) -> None:
        would = "would go" if dry_run else "gone"
        for each in [*found["blobs"], *found["files"]][: LISTED if dry_run else 0]:
            click.echo(f"  {each.get('blob') or each['file']}  {each['bytes']:,} bytes")
        if found["runs"]:
            click.echo(f"{counted(len(found['runs']), 'deleted run')} {would}")
        click.echo(f"{counted(len(found['blobs']), 'blob')} and {counted(len(found['files']), 'temporary file')} {would}: {found['bytes']:,} bytes")
        for each in found["streams"]:
            click.echo(f"{counted(each['segments'], 'segment')} of {each['stream']} {'would be' if dry_run else 'are'} one file")

    _print(verb(_open(ctx, quiet=as_json), dry_run=dry_run, older_than=_config_value("duration", older_than)), as_json, show)


class Bare(click.Group):
    """A group that without the name of a command means its first one: `palan runs` is `palan runs list`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


@cli.group(cls=Bare)
def data() -> None:
    """Look at data: list tables and their versions, compare two, write one to a file. Without a command it lists.

    \b
    Example:  palan data
              palan data list weather
              palan data diff weather@1 weather
              palan data export weather@2013-04-01 weather.parquet

    A version is named by its number, by a day or time (as the table was then), or by the id of a run that had it.
    """


@data.command("list")
@click.argument("name", required=False, default="")
@click.option("--limit", default=50, type=click.IntRange(1, 10_000), show_default=True, help="How many at the most.")
@_json
@click.pass_context
def data_list(ctx: click.Context, name: str, limit: int, as_json: bool) -> None:
    """List the versions of a table, the newest first; without NAME the newest of each.

    \b
    Example:  palan data list weather
    """
    from palan.cli.data import listed
    from palan.flows.versions import versions as verb

    project = _open(ctx, quiet=True)
    _print(verb(project, name, limit=limit), as_json, lambda found: listed(project, found, name))


@data.command("diff")
@click.argument("old")
@click.argument("new")
@click.option("--rows", default=20, type=click.IntRange(0, 100_000), show_default=True, help="How many changed rows to list.")
@_json
@click.pass_context
def data_diff(ctx: click.Context, old: str, new: str, rows: int, as_json: bool) -> None:
    """Compare two versions of a table: columns, and rows added, removed and changed, with what each changed cell was.

    \b
    Example:  palan data diff weather@1 weather
              palan data diff weather@2013-04-01 weather@2013-05-01 --json
    """
    from palan.cli.data import compared
    from palan.flows.versions import difference as verb

    _print(verb(_open(ctx, quiet=True), old, new, shown=rows), as_json, compared)


@data.command("export")
@click.argument("version")
@click.argument("file")
@_json
@click.pass_context
def data_export(ctx: click.Context, version: str, file: str, as_json: bool) -> None:
    """Write the rows of a version to FILE, which ends in .parquet, .csv or .ndjson.

    \b
    Example:  palan data export weather@3 weather.parquet
    """
    from pathlib import Path

    from palan.flows.versions import export as verb

    def show(found: dict[str, Any]) -> None:
        click.echo(f"{found['data']}: {found['rows']:,} rows in {found['file']}, {found['bytes']:,} bytes")

    _print(verb(_open(ctx, quiet=True), version, Path(file)), as_json, show)


@data.command("repair")
@click.argument("name")
@click.option("--apply", "act", flag_value="apply", help="Put the rows right, as a new version; later rows that are wrong in the same way too.")
@click.option("--undo", "act", flag_value="undo", help="Take back what was applied: the rows flow again as they came.")
@click.option("--column", default="", metavar="COLUMN", help="Only what is suspected of this column.")
@click.option("--reason", default="", help="Why, for the ledger.")
@_json
@click.pass_context
def data_repair(ctx: click.Context, name: str, act: str | None, column: str, reason: str, as_json: bool) -> None:
    """What is suspected of a table, beside what would put it right: the column as it was, as it came and put right.

    Nothing is changed without --apply. Every version stays as it was; the rows as they came are kept.

    \b
    Example:  palan data repair weather
              palan data repair weather --apply --reason "the station reports in °C since May, they say"
              palan data repair weather --undo --reason "it was the weather after all"
    """
    from palan.cli.data import proposed, repaired
    from palan.flows import repair

    project = _open(ctx, quiet=as_json)
    if act is None:
        _print(repair.proposed(project, name), as_json, lambda found: proposed(name, found))
    else:
        _print(repair.repair(project, name, column=column, reason=reason, undo=act == "undo"), as_json, repaired)


@data.command("infer")
@click.argument("name")
@click.option("--from", "files", multiple=True, metavar="FILE", help="A file to look at, instead of the table's own; several times for several.")
@_json
@click.pass_context
def data_infer(ctx: click.Context, name: str, files: tuple[str, ...], as_json: bool) -> None:
    """Write the contract that the files of a table keep, wide enough that good ones to come keep it too, with reasons.

    What it prints belongs into palan.toml, after somebody has looked at it. The more files there are, the more it can say.

    \b
    Example:  palan data infer weather
              palan data infer weather --from feed/may.csv --from feed/june.csv
    """
    from palan.flows.contracts import infer as verb

    def show(found: dict[str, Any]) -> None:
        click.echo(f"# as {found['text']} have it: palan.toml [data.{found['data']}]")
        click.echo(found["toml"], nl=False)

    _print(verb(_open(ctx, quiet=True), name, files), as_json, show)


@data.command("add")
@click.argument("name")
@click.argument("source")
@click.option("--query", default="", metavar="SQL", help="What a database is asked, or a .sql file that has it.")
@click.option("--cursor", default="", metavar="COLUMN", help="The column that grows from row to row: only new rows are fetched.")
@click.option("--lateness", default="", metavar="2h", help="How far back rows may still come late or change.")
@click.option("--start", default="", metavar="VALUE", help="Where the cursor begins.")
@click.option("--key", multiple=True, metavar="COLUMN", help="A column that identifies a row; several times for several.")
@click.option("--time", default="", metavar="COLUMN", help="The column that says when a row happened; else the first of times or dates.")
@click.option("--format", default="", metavar="WORD", help="What a file is whose name does not tell: csv, parquet, ndjson, json, xlsx, arrow.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Sent to a web server; $VARIABLE in it stands for a secret.")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Added to a web address; {since} in it is where the cursor has come to.")
@click.option("--records", default="", metavar="PATH", help="Where in a page of JSON its rows are.")
@click.option("--next", default="", metavar="PATH", help="Where in a page of JSON the next one is named.")
@click.option("--page", default="", metavar="PARAM", help="The parameter that turns pages.")
@click.option("--dry-run", is_flag=True, help="Only print what would be written.")
@_json
@click.pass_context
def data_add(ctx: click.Context, /, name: str, source: str, dry_run: bool, as_json: bool, **more: Any) -> None:
    """Look at a source, and write it into palan.toml with the contract that its rows keep.

    SOURCE is what palan.toml says: files such as "feed/*.csv", an address that begins with https://, s3://, postgresql:// or
    sqlite:, or file.py:function.

    \b
    Example:  palan data add weather "feed/weather-*.csv"
              palan data add orders https://shop.example/api/orders --page page --header 'Authorization=Bearer $API_TOKEN'
              palan data add orders sqlite:shop.db --query "SELECT * FROM orders" --cursor changed --key id
    """
    from palan.flows.contracts import add as verb

    for what in ("headers", "params"):
        if wrong := [each for each in more[what] if "=" not in each]:
            raise PalanError(f"--{what[:-1]} {wrong[0]} is no NAME=VALUE", f"--{what[:-1]} 'NAME=VALUE'")
        more[what] = dict(each.partition("=")[::2] for each in more[what])
    said = {"source": source, **{what: list(value) if isinstance(value, tuple) else value for what, value in more.items() if value}}

    def show(found: dict[str, Any]) -> None:
        click.echo(found["lines"], nl=False)
        click.echo(f"# {'would be written' if dry_run else 'written'} at the end of palan.toml, from {found['rows']:,} rows")
        click.echo(f"next: {found['next']}")

    _print(verb(_open(ctx, quiet=True), name, said, dry_run=dry_run), as_json, show)


@data.group("contract")
def data_contract() -> None:
    """A table's contract: what a change of it breaks; as a document of the Open Data Contract Standard, and from one.

    \b
    Example:  palan data contract diff weather
              palan data contract export weather weather.odcs.yaml
              palan data contract import weather.odcs.yaml
    """


@data_contract.command("diff")
@click.argument("name")
@_json
@click.pass_context
def data_contract_diff(ctx: click.Context, name: str, as_json: bool) -> None:
    """Say how the contract in palan.toml differs from the one that the newest version was judged by, and what that breaks.

    Each change is full, backward, forward, breaking or semantic; of one that is not safe, the models, features,
    transformations and tables are named that use the column. The exit code is then 1.

    \b
    Example:  palan data contract diff weather
    """
    from palan.flows.evolve import contract_diff as verb

    def show(found: dict[str, Any]) -> None:
        click.echo(found["text"])
        for each in found["changes"]:
            click.echo(f"  {each['kind']:<9} {each['text']}" + (f": may break {', '.join(each['breaks'])}" if each["breaks"] else ""))

    found = verb(_open(ctx, quiet=True), name)
    _print(found, as_json, show)
    if found["breaks"]:
        ctx.exit(1)


@data_contract.command("export")
@click.argument("name")
@click.argument("file")
@_json
@click.pass_context
def data_contract_export(ctx: click.Context, name: str, file: str, as_json: bool) -> None:
    """Write the contract of a table to FILE, as a document of the Open Data Contract Standard v3.

    \b
    Example:  palan data contract export weather weather.odcs.yaml
    """
    from pathlib import Path

    from palan.flows.contracts import export as verb

    _print(verb(_open(ctx, quiet=True), name, Path(file)), as_json, lambda found: click.echo(found["text"]))


@data_contract.command("import")
@click.argument("file")
@click.option("--table", default="", help="Which table of the document, where it has several.")
@_json
def data_contract_import(file: str, table: str, as_json: bool) -> None:
    """Read a document of the Open Data Contract Standard v3, and print the lines for palan.toml.

    What the document says and palan has no word for is named.

    \b
    Example:  palan data contract import weather.odcs.yaml
    """
    from pathlib import Path

    from palan.flows.contracts import read_document as verb

    def show(found: dict[str, Any]) -> None:
        click.echo(found["toml"], nl=False)
        for each in found["left out"]:
            click.echo(f"# left out: {each}")

    _print(verb(Path(file), table=table), as_json, show)


@data.group("quarantine", cls=Bare)
def data_quarantine() -> None:
    """Rows that broke a rule: list and show them, put cells right, accept or drop rows. Without a command it lists.

    \b
    Example:  palan data quarantine
              palan data quarantine show weather --rule "temp is outside"
              palan data quarantine fix weather --where "temp > 500" --set 'temp = "temp" / 10' --reason "tenths" --dry-run
              palan data quarantine accept weather --file feed/may.csv --line 7 --reason "a real record"
              palan data quarantine drop weather --where "place = 'TEST'" --reason "the supplier's test rows"

    Where a rule is wrong, change it in palan.toml: at the next palan ingest the rows that hold then are taken in. Where a
    file is wrong and comes corrected, palan ingest resolves its rows.
    """


def _which(verb: Callable[..., None]) -> Callable[..., None]:
    """Let a command be told which rows of a quarantine it is about: what it is given as `asked`."""

    @functools.wraps(verb)
    def told(*args: Any, where: str, rule: str, file: str, line: tuple[int, ...], all_rows: bool, **others: Any) -> None:
        from palan.flows.quarantine import Asked

        verb(*args, asked=Asked(where, rule, file, line, all_rows), **others)

    for option in (
        click.option("--all", "all_rows", is_flag=True, help="Every row that waits."),
        click.option("--line", multiple=True, type=int, metavar="N", help="The rows on these lines of a file; may be given again."),
        click.option("--file", default="", metavar="FILE", help="Rows of this file."),
        click.option("--rule", default="", metavar="RULE", help="Rows that break this rule, or the one that begins so."),
        click.option("--where", default="", metavar="SQL", help="""Rows for which this is true, such as "temp > 500" or "came.temp = 'warm'": came.NAME is a cell as it came."""),
    ):
        told = option(told)
    return told


_decision = (
    click.option("--reason", default="", metavar="WHY", help="Why, for the ledger; without it only --dry-run is possible."),
    click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing."),
)


@data_quarantine.command("list")
@click.argument("name", required=False, default="")
@click.option("--decided", is_flag=True, help="Also what was fixed, accepted or dropped by hand, and why.")
@click.option("--csv", "as_csv", is_flag=True, help="Print data, file, rule, rows as CSV.")
@_json
@click.pass_context
def data_quarantine_list(ctx: click.Context, name: str, decided: bool, as_csv: bool, as_json: bool) -> None:
    """Count what waits in quarantine: of each table, by rule and by file; without NAME of all tables.

    \b
    Example:  palan data quarantine list weather
    """
    from palan.cli.data import in_quarantine, in_quarantine_csv
    from palan.flows.quarantine import overview as verb

    _print(verb(_open(ctx, quiet=True), name, decided_too=decided), as_json, in_quarantine_csv if as_csv else in_quarantine)


@data_quarantine.command("show")
@click.argument("name")
@_which
@click.option("--rows", default=20, type=click.IntRange(1, 1_000_000), show_default=True, help="How many to show.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the rows as they came as CSV, with file, line and rules.")
@_json
@click.pass_context
def data_quarantine_show(ctx: click.Context, name: str, asked: Asked, rows: int, as_csv: bool, as_json: bool) -> None:
    """Show rows in quarantine as they came, with the cells marked that break a rule.

    \b
    Example:  palan data quarantine show weather --rule "temp is outside" --rows 3
    """
    from palan.cli.data import quarantined, quarantined_csv
    from palan.flows.quarantine import show as verb

    _print(verb(_open(ctx, quiet=True), name, asked, limit=rows), as_json, quarantined_csv if as_csv else quarantined)


@data_quarantine.command("fix")
@click.argument("name")
@_which
@click.option("--set", "sets", multiple=True, required=True, metavar="COLUMN=SQL", help="""What a cell is to be, such as 'temp = "temp" / 10'; may be given again.""")
@_decision[0]
@_decision[1]
@_json
@click.pass_context
def data_quarantine_fix(ctx: click.Context, name: str, asked: Asked, sets: tuple[str, ...], reason: str, dry_run: bool, as_json: bool) -> None:
    """Put cells right by expressions; rows that hold then are taken in, as a new version. The others stay as they came.

    \b
    Example:  palan data quarantine fix weather --where "temp > 500" --set 'temp = "temp" / 10' --reason "tenths of a degree"
    """
    from palan.cli.data import decided
    from palan.flows.quarantine import fix as verb

    _print(verb(_open(ctx), name, sets, asked, reason=reason, dry_run=dry_run), as_json, decided)


@data_quarantine.command("accept")
@click.argument("name")
@_which
@_decision[0]
@_decision[1]
@_json
@click.pass_context
def data_quarantine_accept(ctx: click.Context, name: str, asked: Asked, reason: str, dry_run: bool, as_json: bool) -> None:
    """Take rows in although they break a rule. They are not judged again. What its column cannot hold cannot be accepted.

    \b
    Example:  palan data quarantine accept weather --rule "temp is outside" --reason "a heat wave, seen on both stations"
    """
    from palan.cli.data import decided
    from palan.flows.quarantine import accept as verb

    _print(verb(_open(ctx), name, asked, reason=reason, dry_run=dry_run), as_json, decided)


@data_quarantine.command("drop")
@click.argument("name")
@_which
@_decision[0]
@_decision[1]
@_json
@click.pass_context
def data_quarantine_drop(ctx: click.Context, name: str, asked: Asked, reason: str, dry_run: bool, as_json: bool) -> None:
    """Set rows aside for good: they do not come back when their file is read again.

    \b
    Example:  palan data quarantine drop weather --where "place = 'TEST'" --reason "the supplier's test rows"
    """
    from palan.cli.data import decided
    from palan.flows.quarantine import drop as verb

    _print(verb(_open(ctx), name, asked, reason=reason, dry_run=dry_run), as_json, decided)


@cli.group(cls=Bare)
def runs() -> None:
    """Look at runs: search all, show one, compare some. Without a command it searches.

    \b
    Example:  palan runs
              palan runs "metrics.loss < 0.3 AND params.model = 'trees'" --order metrics.loss
              palan runs show 4k2m9x7q
              palan runs compare 4k2m9x7q 8h3t5w1z

    A run is named by its id, the beginning or the end of it, or its name.
    """


@runs.command("list")
@click.argument("search", required=False, default="")
@click.option("--order", multiple=True, metavar="KEY", help='Order by, such as "metrics.loss" or "params.lr desc"; may be given again.')
@click.option("--limit", default=50, type=click.IntRange(1, 10_000), show_default=True, help="How many at the most.")
@click.option("--after", default="", metavar="TOKEN", help="Go on where the list before ended.")
@click.option("--flow", default="track", show_default=True, metavar="FLOW", help='What kind of run: "track" (what somebody tracks), "build", "check" …; "" for all.')
@_json
@click.pass_context
def runs_list(ctx: click.Context, search: str, order: tuple[str, ...], limit: int, after: str, flow: str, as_json: bool) -> None:
    """Search runs; without SEARCH show the newest. Params and metrics that differ come first.

    \b
    Example:  palan runs list "metrics.loss < 0.3" --order metrics.loss
              palan runs list --flow build --limit 5
    """
    from palan.cli.runs import listed
    from palan.flows.runs import search as verb

    if search.isidentifier():  # one word is no search, but may be a command that was mistyped
        raise PalanError(f'palan runs has no command "{search}"', nearest(search, runs.commands) or 'palan runs "metrics.loss < 0.3"')
    found = verb(_open(ctx, quiet=True), search, order=order, after=after, limit=limit, flow=flow)
    _print(found, as_json, lambda found: listed(found, search, order, flow, limit))


@runs.command()
@click.argument("run")
@_json
@click.pass_context
def show(ctx: click.Context, run: str, as_json: bool) -> None:
    """Show everything that is known of RUN: params, metrics with their curves, files, how to repeat it.

    \b
    Example:  palan runs show 4k2m9x7q
    """
    from palan.cli.runs import shown
    from palan.flows.runs import run_page

    project = _open(ctx, quiet=True)
    _print(run_page(project, run), as_json, lambda page: shown(project, page))


@runs.command()
@click.argument("which", nargs=-1, required=True, metavar="RUN RUN...")
@_json
@click.pass_context
def compare(ctx: click.Context, which: tuple[str, ...], as_json: bool) -> None:
    """Put runs side by side, what differs first; with several seeds, how sure the difference is.

    Runs that share every parameter but `seed` are a group, and groups are compared seed by seed.

    \b
    Example:  palan runs compare 4k2m9x7q 8h3t5w1z
    """
    from palan.cli.runs import compared
    from palan.flows.runs import compare as verb

    project = _open(ctx, quiet=True)
    _print(verb(project, which), as_json, lambda told: compared(project, told))


@runs.command("delete")
@click.argument("which", nargs=-1, required=True, metavar="RUN...")
@click.option("--reason", default="", help="Why, for the ledger.")
@_json
@click.pass_context
def runs_delete(ctx: click.Context, which: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Put runs aside, with the runs within them: no search finds them, `palan runs restore` takes them back.

    `palan gc` frees them for good, with the artefacts that only they named, once that is a day ago.
    `palan runs "deleted IS NOT NULL"` lists them.

    \b
    Example:  palan runs delete 4k2m9x7q --reason "wrong data"
    """
    from palan.cli.runs import put_aside
    from palan.flows.delete import delete as verb

    _print(verb(_open(ctx, quiet=as_json), which, reason=reason), as_json, lambda made: put_aside(made, "delete"))


@runs.command("restore")
@click.argument("which", nargs=-1, required=True, metavar="RUN...")
@click.option("--reason", default="", help="Why, for the ledger.")
@_json
@click.pass_context
def runs_restore(ctx: click.Context, which: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Take back runs that were deleted, with the runs within them.

    \b
    Example:  palan runs restore 4k2m9x7q
    """
    from palan.cli.runs import put_aside
    from palan.flows.delete import restore as verb

    _print(verb(_open(ctx, quiet=as_json), which, reason=reason), as_json, lambda made: put_aside(made, "restore"))


@runs.command("export")
@click.argument("file", metavar="FILE")
@click.argument("search", required=False, default="")
@_json
@click.pass_context
def runs_export(ctx: click.Context, file: str, search: str, as_json: bool) -> None:
    """Write runs to one FILE, with their curves and artefacts: all that have ended, or those that SEARCH finds.

    \b
    Example:  palan runs export best.zip "metrics.loss < 0.3"
    """
    from palan.core import counted
    from palan.flows.carry import export_runs as verb

    def show(made: dict[str, Any]) -> None:
        click.echo(f"{made['file']}: {counted(made['runs'], 'run')}, {counted(made['blobs'], 'blob')}, {made['bytes']:,} bytes")
        if made["running"]:
            click.echo(f"{counted(made['running'], 'run')} left out: still running")
        click.echo(f"next: palan runs import {made['file']}   (in another project)")

    _print(verb(_open(ctx, quiet=as_json), file, search), as_json, show)


@runs.command("import")
@click.argument("source", metavar="FILE")
@_json
@click.pass_context
def runs_import(ctx: click.Context, source: str, as_json: bool) -> None:
    """Bring in the runs of a FILE that was exported, or of an MLflow store: its database or its folder.

    Runs that are here already are left as they are. Nothing is imported of a file that was damaged.

    \b
    Example:  palan runs import best.zip
              palan runs import sqlite:///mlflow.db
              palan runs import mlruns/
    """
    from palan.core import counted
    from palan.flows.carry import import_runs as verb

    def show(made: dict[str, Any]) -> None:
        click.echo(f"{made['source']}: {counted(made['runs'], 'new run')}, {counted(made['blobs'], 'blob')}; {made['known']:,} were here already")
        if made["deleted"]:
            click.echo(f"{counted(made['deleted'], 'run')} left out: deleted there")
        if made["missing"]:
            click.echo(f"{counted(made['missing'], 'run')} without artefacts: they lie where this machine cannot read them")
        click.echo("next: palan runs")

    _print(verb(_open(ctx, quiet=as_json), source), as_json, show)


@cli.command()
@click.argument("server", required=False, default="")
@_json
@click.pass_context
def send(ctx: click.Context, server: str, as_json: bool) -> int:
    """Send the runs that wait on this machine for a SERVER, or for every one that they were tracked for.

    Processes that track send by themselves; this is for what they could not. It needs no project, and the token in PALAN_TOKEN.

    \b
    Example:  palan send
              palan send http://host:7070
    """
    from palan.cli.runs import sent
    from palan.flows.send import send as verb

    found = verb(server) if as_json else verb(server, tell=tell)
    _print(found, as_json, sent)
    return ACT if any(each["waiting"] for each in found) else FINE


@cli.group(cls=Bare)
def jobs() -> None:
    """Long solves: list them, show one, submit, stop, or work them. Without a command it lists them.

    `palan up` and `palan serve` work the queue beside what they answer; `palan jobs work` does nothing else. The job with the
    highest priority is begun first, of equal ones the oldest; [models.NAME.jobs] limits how many are worked at once.

    \b
    Example:  palan jobs submit routing instance.json --priority 5
              palan jobs
    """


@jobs.command("list")
@click.argument("model", required=False, default="")
@click.option("--limit", default=50, type=click.IntRange(1, 1000), show_default=True, help="How many at the most.")
@_json
@click.pass_context
def jobs_list(ctx: click.Context, model: str, limit: int, as_json: bool) -> None:
    """List jobs, the newest first; with MODEL, those of one model.

    \b
    Example:  palan jobs list routing --limit 5
    """
    from palan.flows.jobs import jobs as verb

    columns = {"id": "job", "version": "version", "fate": "fate", "status": "status", "priority": "priority", "queue": "queue", "objective": "objective", "seconds": "seconds", "about": "about"}

    project = _open(ctx, quiet=True)
    if model:
        project.model(model)
    _print(verb(project, model, limit=limit), as_json, lambda found: _table(found, columns) if found else click.echo("no job was submitted yet\nnext: palan jobs submit MODEL FILE"))


@jobs.command("show")
@click.argument("id")
@_json
@click.pass_context
def jobs_show(ctx: click.Context, id: str, as_json: bool) -> None:
    """Show one job, with its incumbents and its answer.

    \b
    Example:  palan jobs show 01m0zq4k7v3r9x2c5d8f1g6h
    """
    from palan.flows.jobs import job as verb

    def show(found: dict[str, Any]) -> None:
        _table([found], {"version": "version", "fate": "fate", "status": "status", "objective": "objective", "bound": "bound", "seconds": "seconds"})
        for name in ("about", "reason", "queue", "priority", "decision"):
            if found[name]:
                click.echo(f"{name}: {found[name]}")
        if found["incumbents"]:
            _table(found["incumbents"][-LISTED:], {"seconds": "seconds", "objective": "objective", "bound": "bound"})
        if found["fate"] in ("queued", "running"):
            click.echo(f"next: palan jobs stop {id}")

    _print(verb(_open(ctx, quiet=True), id), as_json, show)


@jobs.command("submit")
@click.argument("model")
@click.argument("file", type=click.File("rb"))
@click.option("--version", default="", metavar="VERSION", help="Such as routing@3; else the champion.")
@click.option("--time-limit", default="", metavar="TIME", help="How long the solve may take; else the model's own time_limit.")
@click.option("--priority", default=0, show_default=True, help="Jobs with a higher one are begun first.")
@click.option("--queue", default="", metavar="NAME", help="Jobs of one queue share the limit per_queue.")
@click.option("--idempotency-key", default="", metavar="KEY", help="Submitting again under the same key gives the same job.")
@_json
@click.pass_context
def jobs_submit(ctx: click.Context, model: str, file: Any, version: str, time_limit: str, priority: int, queue: str, idempotency_key: str, as_json: bool) -> None:
    """Queue the instance in FILE (JSON; "-" is standard input) for MODEL.

    \b
    Example:  palan jobs submit routing instances/monday.json --priority 5 --queue lyon
    """
    from palan.data.inputs import parsed
    from palan.flows.jobs import submit as verb

    seconds = _config_value("duration", time_limit).total_seconds() if time_limit else None
    made = verb(
        _open(ctx, quiet=True), model, instance=parsed(file.read(), file.name), version=version, time_limit=seconds, priority=priority, queue=queue, idempotency_key=idempotency_key
    )
    _print(made, as_json, lambda made: click.echo(f"job {made['id']} is {made['fate']} for {made['version']}\nnext: palan jobs show {made['id']}"))


@jobs.command("stop")
@click.argument("id")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the ledger.")
@_json
@click.pass_context
def jobs_stop(ctx: click.Context, id: str, reason: str, as_json: bool) -> None:
    """Ask a job to end with the best answer that it has, whichever process works on it; a queued one ends at once.

    \b
    Example:  palan jobs stop 01m0zq4k7v3r9x2c5d8f1g6h --reason "good enough"
    """
    from palan.flows.jobs import stop as verb

    _print(verb(_open(ctx, quiet=True), id, reason), as_json, lambda made: click.echo(f"job {made['id']} is {'cancelled' if made['fate'] == 'cancelled' else 'asked to stop'}"))


@jobs.command("work")
@click.option("--until-empty", is_flag=True, help="End when no job is left.")
@_json
@click.pass_context
def jobs_work(ctx: click.Context, until_empty: bool, as_json: bool) -> None:
    """Work the queue and do nothing else, until Ctrl-C or SIGTERM, which put the jobs under way back.

    Start it as often, and on as many machines that share the store, as there is work for.

    \b
    Example:  palan jobs work
    """
    from palan.core import counted
    from palan.flows.jobs import work as verb

    _print(verb(_open(ctx), until_empty=until_empty), as_json, lambda made: click.echo(f"{counted(made['worked'], 'job')} worked"))


@cli.command()
@_json
@click.pass_context
def config(ctx: click.Context, as_json: bool) -> None:
    """Show every setting and who set it: palan.toml, the environment, or the default.

    \b
    Example:  palan config
    """
    from palan.flows.config import config as verb

    rows = verb(_open(ctx, quiet=True))
    _print(rows, as_json, lambda rows: _table(rows, {"name": "setting", "value": "value", "by": "set by"}))


@cli.command()
@click.option("--into", default="palan-demo", show_default=True, metavar="FOLDER", help="Where the demo's project is made.")
@click.option("--no-serve", is_flag=True, help="End after the summary instead of keeping the pages open.")
@click.option("--port", type=int, help="Port of the pages; else PALAN_PORT, else 7070.")
@_json
def demo(into: str, no_serve: bool, port: int | None, as_json: bool) -> None:
    """Replay a year of real flights through the whole loop, for models of all five kinds.

    \b
    Example:  palan demo --no-serve
    """
    from palan.flows.demo import demo as verb

    def show(summary: dict[str, Any]) -> None:
        click.echo(summary["text"])

    verb(into, serve=not no_serve, port=port, tell=tell if as_json else click.echo, done=lambda made: _print(made, as_json, show))
