"""`mtcore serve` and `mtcore swap`: put bundles online, and replace one of them while it is."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET…")
@click.option("--variant", metavar="NAME", help="Of a run with several variants.")
@click.option("--seed", type=int, help="Of a run with several seeds.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where others can reach it, a key is demanded.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes, each with models of its own.")
@click.option("--threads", type=click.IntRange(1), help="Threads that a worker computes in.  [default: processors / workers]")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="Keys that clients may send, one a line; MTCORE_SERVE_KEYS is read too. No option takes a key: other users can read command lines.",
)
@click.option("--admin", type=click.Path(path_type=Path), help="Path of the admin socket.  [default: in a private folder]")
@click.option("--grace", default=0.0, show_default=True, type=click.FloatRange(0), help="Seconds to go on accepting once asked to end.")
@click.option(
    "--set", "bounds", multiple=True, metavar="KEY=VALUE", help="A bound: deadline, batch_tokens, queue_tokens … An unknown key lists all."
)
@click.option("--log-level", default="warning", show_default=True, type=click.Choice(["debug", "info", "warning", "error"]))
def serve(
    targets: Sequence[str],
    variant: str | None,
    seed: int | None,
    host: str,
    port: int,
    workers: int,
    threads: int | None,
    key_file: Path | None,
    admin: Path | None,
    grace: float,
    bounds: Sequence[str],
    log_level: str,
) -> None:
    """Answer every task of each TARGET at one endpoint.

    A TARGET is a bundle's folder, a run's folder or a run file; NAME=FOLDER gives a bundle another name. Asked to end by SIGTERM or Ctrl-C, the
    server answers what it has accepted and ends with 0.
    """
    from mtcore.config import parse_setting, validate
    from mtcore_serve.control import SOCKET
    from mtcore_serve.limits import Limits
    from mtcore_serve.server import Settings, work
    from mtcore_serve.starting import bind, default_threads, own_folder, read_keys, url
    from mtcore_serve.supervisor import supervise
    from mtcore_serve.targets import sources

    limits = validate(Limits, {key: value for bound in bounds for key, value in parse_setting(bound).items()}, "--set")
    keys = read_keys(key_file, os.environ.get("MTCORE_SERVE_KEYS"))
    found = sources(targets, variant, seed)
    with own_folder() as folder, bind(host, port, keys) as listening:
        metrics = folder / "metrics"
        if workers > 1:
            metrics.mkdir()
        settings = Settings(
            sources=tuple(found),
            limits=limits,
            admin=admin.absolute() if admin else folder / SOCKET,
            keys=keys,
            threads=threads or default_threads(workers),
            metrics_folder=str(metrics) if workers > 1 else None,
            grace=grace,
            log_level=log_level,
        )
        where = url(listening)  # a socket that has been left has no address any more
        for source in found:
            _show(source)

        def announce() -> None:
            click.echo(f"ready: {where} (admin socket: {settings.admin})")

        code = work(settings, [listening], announce) if workers == 1 else supervise(settings, workers, [listening], announce)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that hangs in a model must not keep the process, nor be torn down under it


@click.command()
@click.argument("group", required=False)
@click.argument("target", required=False)
@click.option("--variant", metavar="NAME", help="Of a run with several variants.")
@click.option("--seed", type=int, help="Of a run with several seeds.")
@click.option(
    "--canary", type=click.FloatRange(0, 1), metavar="SHARE", help="Let the new bundle answer this share of the requests, and no more."
)
@click.option(
    "--shadow", type=click.FloatRange(0, 1), metavar="SHARE", help="Let it answer this share too, unseen; /metrics compares the two."
)
@click.option("--drop-tasks", is_flag=True, help="TARGET may lack tasks that GROUP answers now.")
@click.option("--promote", is_flag=True, help="Put the bundle online that a canary or shadow has prepared.")
@click.option("--discard", is_flag=True, help="Drop it.")
@click.option("--status", "is_status", is_flag=True, help="Say what is online, as JSON.")
@click.option("--admin", type=click.Path(path_type=Path), help="The server's admin socket.  [default: that of the only server here]")
def swap(
    group: str | None,
    target: str | None,
    variant: str | None,
    seed: int | None,
    canary: float | None,
    shadow: float | None,
    drop_tasks: bool,
    promote: bool,
    discard: bool,
    is_status: bool,
    admin: Path | None,
) -> None:
    """Replace GROUP's bundle, in a server that goes on answering, by TARGET: a bundle's folder, or a run that has a group of that name.

    The new bundle is loaded, verified, warmed up and asked its own probes; only then do requests go to it. One that fails any of this changes
    nothing: exit code 2 and the reason.
    """
    import asyncio
    import time

    from mtcore.cli.common import print_json
    from mtcore_serve.control import ask, find_server
    from mtcore_serve.targets import successor

    shares = {name: share for name, share in (("canary", canary), ("shadow", shadow)) if share is not None}
    wanted = [bool(target), promote, discard, is_status, bool(shares and not target)]
    if sum(wanted) != 1 or (group is None) != is_status:
        raise click.UsageError("name GROUP and a TARGET, GROUP with --canary, --shadow, --promote or --discard, or --status alone")
    place = admin or find_server()

    def say(method: str, route: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return asyncio.run(ask(place, method, route, body))

    if is_status:
        print_json(say("GET", "/status"))
        return
    begun = time.monotonic()
    if target:
        source = successor(str(group), target, variant, seed)
        body = {"group": group, "folder": str(source.folder), "qualified": dict(source.qualified), "may_drop_tasks": drop_tasks}
        version = say("POST", "/prepare", body)["version"]
        click.echo(f"{group}: version {version} is prepared ({time.monotonic() - begun:.1f} s)")
    if discard:
        say("POST", "/discard", {"group": group})
        click.echo(f"{group}: the prepared bundle is dropped")
    elif shares:
        say("POST", "/share", {"group": group, **shares})
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        click.echo(f"{group}: {told}. When /metrics is content: mtcore swap {group} --promote, or --discard")
    else:
        version = say("POST", "/switch", {"group": group})["version"]
        click.echo(f"{group}: version {version} is online ({time.monotonic() - begun:.1f} s)")


def _show(source: Any) -> None:
    """Say what a bundle answers, and what of it was not found good enough."""
    from mtcore.bundle import read_bundle

    manifest = read_bundle(source.folder, verify=False)
    click.echo(f"group {source.group}: version {manifest.version}, {source.folder}")
    for task in manifest.tasks:
        known = {True: ", qualified", False: ", NOT qualified", None: ""}[source.qualified.get(task)]
        click.echo(f"  {task}{known}")
