"""The files of docs/deploy name options, ports, paths, routes and metrics that there are, and leave the server the time that it takes to end."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import click
import pytest
import yaml

pytest.importorskip("mtcore_serve", reason="mtcore-serve is not installed: pip install ./plugins/serve")

from mtcore_serve.app import create_app
from mtcore_serve.command import serve
from mtcore_serve.fleet import Fleet
from mtcore_serve.limits import Limits
from mtcore_serve.metrics import Metrics

from mtcore.bundle import BundledTask, BundleManifest, write_bundle
from mtcore.cli import cli
from mtcore.config import parse_setting
from mtcore.plugins import load_plugins
from mtcore.testing import toy_spec

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "docs/deploy"


def parsed(arguments: Sequence[str]) -> Mapping[str, Any]:
    """What `mtcore serve` makes of arguments; an unknown option is an error."""
    return serve.make_context("serve", list(arguments)).params


def bounds(options: Mapping[str, Any]) -> Limits:
    return Limits(**{key: value for bound in options["bounds"] for key, value in parse_setting(bound).items()})


def is_below(path: object, folders: Sequence[str]) -> bool:
    return any(PurePosixPath(str(path)).is_relative_to(folder) for folder in folders)


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Containerfile").read_text(encoding="utf-8")))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    return {m["kind"]: m for m in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def routes() -> set[str]:
    limits, metrics = Limits(), Metrics()
    app = create_app(Fleet(load_plugins(environment=""), limits, metrics), limits, metrics)
    return set(app.openapi()["paths"])


def test_a_pod_is_started_probed_and_ended_as_the_server_is(manifests, routes):
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = parsed(container["args"])
    assert container["ports"] == [{"name": "http", "containerPort": options["port"]}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == "http"
        assert asked["path"] in routes
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    readiness = container["readinessProbe"]
    assert options["grace"] > readiness["periodSeconds"] * readiness["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] > options["grace"] + bounds(options).drain_seconds


def test_a_pod_writes_only_where_it_may_and_finds_what_it_is_told(manifests):
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = parsed(container["args"])
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsNonRoot"]
    kinds = {volume["name"]: next(key for key in volume if key != "name") for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: kinds[mount["name"]] for mount in container["volumeMounts"]}
    writable = [path for path, kind in mounts.items() if kind == "emptyDir"]
    assert is_below(options["admin"], writable)
    assert is_below("/tmp", writable)
    assert is_below(options["key_file"], [path for path, kind in mounts.items() if kind == "secret"])
    for target in options["targets"]:
        assert is_below(target.partition("=")[2] or target, [path for path, kind in mounts.items() if kind == "persistentVolumeClaim"])


def test_pods_are_found_kept_and_scaled_by_their_own_name(manifests):
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == manifests["Deployment"]["metadata"]["name"]
    assert "replicas" not in manifests["Deployment"]["spec"]  # each apply would undo what the autoscaler did
    assert manifests["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_image_is_made_of_files_that_are_there_and_starts_a_command_that_is(routes):
    steps = instructions()
    for step, text in steps:
        if step == "COPY" and not text.startswith("--from"):
            *sources, _ = text.split()
            assert all((ROOT / source).exists() for source in sources), text
    entry, command, check = (next(text for step, text in steps if step == name) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    assert json.loads(entry) == ["mtcore", "serve"]
    port = parsed(json.loads(command))["port"]
    assert ("EXPOSE", str(port)) in steps
    asked = re.search(r"127\.0\.0\.1:(\d+)(/\w+)", check)
    assert (int(asked[1]), asked[2] in routes) == (port, True)
    assert "USER" in dict(steps)
    assert re.search(r"(?m)^torch==", (ROOT / "constraints.txt").read_text(encoding="utf-8"))


def test_the_composed_server_has_its_files_its_key_and_time_to_end(compose, routes):
    server, watcher = compose["services"]["mtcore"], compose["services"]["prometheus"]
    options = parsed(server["command"])
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert server["ports"] == [f"127.0.0.1:{options['port']}:{options['port']}"]
    assert options["key_file"] == Path("/run/secrets", *server["secrets"])
    assert set(server["secrets"]) <= set(compose["secrets"])
    assert server["read_only"]
    assert is_below(options["admin"], server["tmpfs"])
    assert options["targets"] == tuple(volume.split(":")[-2] for volume in server["volumes"])
    assert int(server["stop_grace_period"].removesuffix("s")) > options["grace"] + bounds(options).drain_seconds
    asked = re.search(r"127\.0\.0\.1:(\d+)(/\w+)", server["healthcheck"]["test"][-1])
    assert (int(asked[1]), asked[2] in routes) == (options["port"], True)
    files = [volume.split(":")[0] for volume in watcher["volumes"] if volume.startswith(".")]
    assert files
    assert all((DEPLOY / file).is_file() for file in files)


def test_prometheus_asks_the_composed_server_and_its_alerts_name_metrics_that_there_are(compose):
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert int(port) == parsed(compose["services"][host]["command"])["port"]
    inside = {volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]}
    assert set(config["rule_files"]) <= inside
    known = set(re.findall(r"(?m)^# HELP (\w+)", Metrics().render()[0].decode()))
    for text in ((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"), (ROOT / "docs/serving.md").read_text(encoding="utf-8")):
        named = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\bmtcore_(?!serve|ray)\w+", text)}
        assert named
        assert named <= known


def test_ray_is_told_arguments_and_bounds_that_there_are():
    online = pytest.importorskip("mtcore_ray_serve", reason="mtcore-launcher-ray is not installed: pip install ./plugins/launcher-ray")
    (application,) = yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text(encoding="utf-8"))["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(online, name))
    assert module == online.__name__
    Limits(**online.Arguments(**application["args"]).limits)


def commands() -> Iterator[str]:
    """What docs/serving.md has a person type of mtcore's own commands."""
    for block in re.findall(r"(?m)(?:^ {4}.*\n)+", (ROOT / "docs/serving.md").read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.strip().startswith("mtcore "):
                yield line.split("  #")[0].strip()


@pytest.mark.parametrize("line", list(commands()))
def test_the_page_types_commands_and_options_that_there_are(line):
    _, name, *arguments = shlex.split(line)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, arguments)


def test_the_page_makes_prompts_as_a_bundle_was_taught_them(base_folder, tmp_path):
    tasks = {"toys/multi-class": BundledTask(spec=toy_spec("multi-class"))}
    manifest = BundleManifest(method="text2text", options={"max_length": 64}, tasks=tasks, base="toy", base_digest="")
    bundle = write_bundle(tmp_path / "bundle", manifest, lambda folder: shutil.copytree(base_folder, folder, dirs_exist_ok=True))
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / "docs/serving.md").read_text(encoding="utf-8"))
    (code,) = (block for block in blocks if "read_bundle" in block)
    names: dict[str, Any] = {}
    exec(code.replace('"runs/demo/seed-1/classification/bundle"', repr(str(bundle))), names)
    ids, words = names["prompt"]("toys/multi-class", {"text": "it is loud"})
    assert names["encoder"].decode(ids) == "Answer multi-class.\nit is loud\nAnswer: "
    assert words == ["food", "room", "staff"]
