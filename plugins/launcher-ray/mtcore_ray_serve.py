"""The online server on Ray Serve: replicas of its app, which a cluster starts, balances, scales and replaces."""

import gc
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mtcore.config import parse_setting, validate
from mtcore.errors import ConfigError, RunError

MARGIN = 10.0
"""Seconds that a replica has for its end beside draining."""
SOME = click.FloatRange(0, min_open=True)


class Arguments(BaseModel):
    """What `serve run mtcore_ray_serve:app` takes as KEY=VALUE, and a Serve config file as `args`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    targets: tuple[str, ...] = Field(min_length=1)
    """Run folders and bundles, at paths that all machines of the cluster know."""
    keys: Path | Literal["none"]
    """A file of keys that all machines know. `none` has to be said: a Serve config file listens on every interface unless told otherwise."""
    replicas: int = Field(default=1, gt=0)
    max_replicas: int | None = Field(default=None, gt=0)
    """Where it is given, Ray scales between `replicas` and so many."""
    ongoing: float = Field(default=16, gt=0)
    """Requests of one replica at a time that Ray scales towards."""
    cpus: float = Field(default=1, gt=0)
    """Processors of a replica, which computes with as many threads."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a replica."""
    limits: dict[str, int | float] = {}
    """Bounds of the server other than its own, by name."""

    @field_validator("targets", mode="before")
    @classmethod
    def one_target(cls, value: Any) -> Any:
        """KEY=VALUE knows no lists."""
        return (value,) if isinstance(value, str) else value


def app(arguments: Arguments) -> Any:
    """The application: `serve run mtcore_ray_serve:app targets=BUNDLE keys=FILE`, or `import_path` of a Serve config file.

    Raises ConfigError or ModelError where it could not be served.
    """
    serve = _ray_serve()
    from mtcore_serve.limits import Limits
    from mtcore_serve.targets import sources

    limits = validate(Limits, arguments.limits, "limits")
    scaling: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.max_replicas is not None:
        bounds = {"min_replicas": arguments.replicas, "max_replicas": arguments.max_replicas}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": arguments.ongoing}}
    deployment = serve.deployment(
        name="mtcore",
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        # refusing is the replica's affair, which knows what waiting would cost; Ray's queue has no deadlines
        max_ongoing_requests=2 * limits.queue_requests,
        max_queued_requests=limits.queue_requests,
        graceful_shutdown_timeout_s=limits.drain_seconds + MARGIN,
        # replicas of another bundle are ready before the old ones go, and where they never are, the old ones stay
        max_surge_percent=100,
        **scaling,
    )(serve.ingress()(Replica))
    keys = None if arguments.keys == "none" else Path(arguments.keys).absolute()
    return deployment.bind(sources(arguments.targets), limits, keys, max(1, int(arguments.cpus)))


class Replica:
    """One process with all bundles, which answers what Ray sends it."""

    async def __init__(self, sources: Sequence[Any], limits: Any, keys: Path | None, threads: int) -> None:
        import torch
        from mtcore_serve.fleet import Fleet
        from mtcore_serve.metrics import Metrics
        from mtcore_serve.starting import read_keys

        from mtcore.cli.common import load_registry

        torch.set_num_threads(threads)
        self._limits, self._metrics, self._keys = limits, Metrics(), read_keys(keys, None)
        self._fleet = Fleet(load_registry(), limits, self._metrics)
        await self._fleet.load(sources)
        gc.collect()
        gc.freeze()  # what is loaded stays: walking through it would stall answers

    def __serve_build_asgi_app__(self) -> Any:
        from mtcore_serve.app import create_app

        return create_app(self._fleet, self._limits, self._metrics, self._keys)

    async def check_health(self) -> None:
        """Raises where Ray shall replace this replica."""
        if not self._fleet.is_ready:
            raise RuntimeError("a model was given up and does not come back")

    async def __del__(self) -> None:
        """Ray's name for the end of a replica: nothing is sent to it any more."""
        await self._fleet.drain(self._limits.drain_seconds)
        await self._fleet.close()


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET…")
@click.option("--address", default="local", show_default=True, help="`auto`: the cluster of this machine; `ray://HOST:PORT`: another.")
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1), help="Processes, each with models of its own.")
@click.option("--max-replicas", type=click.IntRange(1), help="Let Ray scale between --replicas and so many.")
@click.option("--ongoing", default=16.0, show_default=True, type=SOME, help="Requests of one replica at a time that Ray scales towards.")
@click.option("--cpus", default=1.0, show_default=True, type=SOME, help="Processors of a replica.")
@click.option("--gpus", default=0.0, show_default=True, type=click.FloatRange(0), help="GPUs of a replica.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where others can reach it, a key is demanded.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--key-file", type=click.Path(path_type=Path), help="Keys that clients may send, one a line; every machine needs the file.")
@click.option("--set", "bounds", multiple=True, metavar="KEY=VALUE", help="A bound of the server, as in `mtcore serve`.")
def serve_ray(
    targets: tuple[str, ...],
    address: str,
    replicas: int,
    max_replicas: int | None,
    ongoing: float,
    cpus: float,
    gpus: float,
    host: str,
    port: int,
    key_file: Path | None,
    bounds: Sequence[str],
) -> None:
    """Answer every task of each TARGET by replicas on a Ray cluster, until Ctrl-C.

    What a TARGET is, `mtcore serve --help` says. For a cluster that goes on by itself, use `serve deploy` with a config file: the plugin's README
    has one.
    """
    serve = _ray_serve()
    import ray
    from mtcore_serve.starting import bind, read_keys

    bind(host, 0, read_keys(key_file, None)).close()  # raises where others could ask without a key
    application = app(
        Arguments(
            targets=targets,
            keys=key_file or "none",
            replicas=replicas,
            max_replicas=max_replicas,
            ongoing=ongoing,
            cpus=cpus,
            gpus=gpus,
            limits={key: value for bound in bounds for key, value in parse_setting(bound).items()},
        )
    )
    ray.init(address=address, include_dashboard=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own would end the command before its replicas have answered
    try:
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        serve.run(application, blocking=True)
    except RuntimeError as error:
        reasons = [d.message for a in serve.status().applications.values() for d in a.deployments.values()]
        raise RunError("\n".join([f"Ray Serve could not put it online: {error}", *reasons])) from error
    except KeyboardInterrupt:
        click.echo("ending: what was accepted is answered first", err=True)
        serve.delete("default")  # shutdown alone would end the proxies with what they wait for
    finally:
        serve.shutdown()


def _ray_serve() -> Any:
    try:
        import mtcore_serve  # noqa: F401
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            f"the online server on Ray needs {error.name}, which is not installed: pip install 'mtcore-launcher-ray[serve]', on every machine"
        ) from error
    return serve
