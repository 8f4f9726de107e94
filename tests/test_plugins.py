"""A plugin is found by its metadata and loaded alone: what is broken is listed, breaks nothing else, and stops only runs that name it."""

import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mtcore.config import RunConfig
from mtcore.errors import ConfigError, PluginError, UnknownName
from mtcore.planning import plan_run
from mtcore.plugins import COMMANDS, GROUP, discover, load_plugins
from mtcore.preparation import Preparer
from mtcore.registry import Plugin, Registry
from mtcore.types import SamplerUse, SchedulerUse

HEALTHY = '''"""A task and a sampler, as somebody else would write them."""

from mtcore.contracts import Options, Sampler, TaskAdapter
from mtcore.hookspecs import hookimpl
from mtcore.types import Mixture, TaskSpec

mtcore_api = 1


class Toy(TaskAdapter):
    spec = TaskSpec(
        name="toy",
        output="binary",
        input="single-sentence",
        fields=("text",),
        instruction="Is it good?",
        template="{text}",
        words={"no": "bad", "yes": "good"},
        metric="accuracy",
        licence="none",
        source="made up",
    )

    def rows(self, split):
        return [{"text": f"{split} {i}", "label": ("no", "yes")[i % 2]} for i in range({"train": 6, "validation": 4}.get(split, 0))]

    @staticmethod
    def fields(row):
        return {"text": row["text"]}

    def answer(self, row):
        return row["label"]


class Loud(Sampler):
    name = "loud"

    class Config(Options):
        factor: float = 1.0

    def epoch_draws(self, profiles):
        return 12

    def mix(self, profiles, draws, ledger):
        return Mixture(shares={p.name: 1 / len(profiles) for p in profiles}, note="as loud as you like")


@hookimpl
def register_tasks():
    return [Toy]


@hookimpl
def register_samplers():
    return [Loud]
'''
NEIGHBOUR = HEALTHY.replace('"loud"', '"quiet"')

Edit = Callable[[str], str]
Plugins = Sequence[tuple[str, str]]


def swap(old: str, new: str) -> Edit:
    def edit(source: str) -> str:
        assert old in source
        return source.replace(old, new)

    return edit


def first(line: str) -> Edit:
    return lambda source: f"{line}\n{source}"


FAULTS: Mapping[str, tuple[Edit, str]] = {
    "it imports what is not there": (first("import not_there_at_all"), "ModuleNotFoundError: No module named 'not_there_at_all'"),
    "it is no Python": (first("def"), "SyntaxError: invalid syntax"),
    "it exits": (first("import sys; sys.exit(3)"), "SystemExit: 3"),
    "it fails while it is imported": (first("1 / 0"), "ZeroDivisionError"),
    "its hook is misspelt": (swap("def register_samplers", "def register_sampler"), "unknown hook 'register_sampler'"),
    "its hook wants an argument": (swap("register_tasks()", "register_tasks(config)"), "Argument(s) {'config'}"),
    "its hook fails": (swap("return [Loud]", "raise ValueError('not today')"), "ValueError: not today"),
    "its hook exits": (swap("return [Loud]", "raise SystemExit"), "SystemExit: no message"),
    "its hook returns nothing": (swap("return [Loud]", "[Loud]"), "register_samplers() returned None"),
    "its hook returns a class": (swap("return [Toy]", "return Toy"), "it must return classes in a list"),
    "its hook returns an object": (swap("return [Toy]", "return [Toy()]"), "which is no subclass of mtcore.contracts.TaskAdapter"),
    "its hook returns another kind": (swap("return [Toy]", "return [Loud]"), "which is no subclass of mtcore.contracts.TaskAdapter"),
    "it marks no hook": (swap("@hookimpl\n", ""), "implements no hook"),
    "it is from the future": (swap("mtcore_api = 1", "mtcore_api = 99"), "version 99"),
    "it has two tasks of one name": (
        swap("return [Toy]", "return [Toy, type('Other', (Toy,), {})]"),
        "it registers two tasks called 'toy'",
    ),
    "it has two samplers of one name": (swap("return [Loud]", "return [Loud, Loud]"), "it registers two samplers called 'loud'"),
    "its task has no spec": (swap("    spec = ", "    sepc = "), "task Toy has no `spec"),
    "its task's spec is wrong": (swap('template="{text}"', 'template="{body}"'), "ValidationError"),
    "its task lacks a method": (swap("def rows", "def rosw"), "Toy does not define rows"),
    "its task's method takes other arguments": (
        swap("rows(self, split)", "rows(self)"),
        "Toy.rows(self) cannot take the contract's arguments",
    ),
    "its task is built from other arguments": (
        swap("    def rows", "    def __init__(self, folder, cache):\n        pass\n\n    def rows"),
        "Toy.__init__(self, folder, cache) cannot take the contract's arguments",
    ),
    "its sampler lacks a method": (swap("def mix", "def mxi"), "Loud does not define mix"),
    "its sampler's method takes other arguments": (swap("draws, ledger", "draws"), "Loud.mix(self, profiles, draws) cannot take"),
    "its sampler has no name": (swap('name = "loud"', ""), "sampler Loud needs `name"),
    "its sampler's options are not strict": (swap("Config(Options)", "Config"), "sampler Loud needs `name"),
}
every_fault = pytest.mark.parametrize(("edit", "reason"), FAULTS.values(), ids=FAULTS.keys())


def metadata(name: str, version: str, plugins: Plugins, commands: Plugins = ()) -> dict[str, str]:
    """The files of a `.dist-info`, by name; one entry-point name may stand there twice, as in a file that somebody wrote by hand."""
    groups = {GROUP: plugins, COMMANDS: commands}
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points))]
    return {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "entry_points.txt": "\n".join(lines) + "\n",
        "RECORD": "",
    }


def install(
    folder: Path, name: str, source: str = HEALTHY, *, plugins: Plugins | None = None, commands: Plugins = (), version: str = "1.0"
) -> None:
    """Leave in `folder` what pip leaves: a module, and metadata whose entry point names it. The plugin is called as the distribution."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    for file, text in metadata(name, version, [(name, module)] if plugins is None else plugins, commands).items():
        (info / file).write_text(text, encoding="utf-8")
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with one healthy plugin, `neighbour`; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "neighbour", NEIGHBOUR)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def mtcore(*arguments: str, path: Path, plugins: str | None = None, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command line with `path` in front of what is importable, and MTCORE_PLUGINS as given."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MTCORE_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    if plugins is not None:
        environment["MTCORE_PLUGINS"] = plugins
    command = [sys.executable, *options, "-c", "from mtcore.cli import main; main()", *arguments]
    return subprocess.run(command, env=environment, cwd=path.parent, capture_output=True, text=True, encoding="utf-8", timeout=120)


def answered(run: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a command printed."""
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def modules_of(run: subprocess.CompletedProcess[str]) -> set[str]:
    """What was imported by a process that was started with `-X importtime`."""
    return {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}


def run_file(folder: Path, text: str) -> str:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def plugin(registry: Registry, name: str) -> Plugin:
    (found,) = [p for p in registry.plugins if p.name == name]
    return found


def others(registry: Registry, *names: str) -> dict[str, str]:
    """What has become of all plugins but these."""
    return {f"{p.name} of {p.distribution}": p.status for p in registry.plugins if p.name not in names}


def planned(registry: Registry, *tasks: str, sampler: str = "instance-balanced") -> list[str]:
    """The tasks of a plan for a run that names these tasks and this sampler."""
    use = SchedulerUse.model_validate({"use": "mixture", "sampler": SamplerUse(use=sampler).model_dump()})
    plan = plan_run(RunConfig(tasks=tasks, scheduler=use, out="nowhere"), registry, Preparer(registry, lambda event: None))
    return [task for group in plan.groups for task in group.group.tasks]


# --- one plugin is broken ---------------------------------------------------------------------------------------------------------------


@every_fault
def test_a_broken_plugin_is_listed_with_its_reason_and_changes_no_other(site: Path, edit: Edit, reason: str) -> None:
    before = load_plugins()
    install(site, "broken", edit(HEALTHY), version="2.3")
    after = load_plugins()
    broken = plugin(after, "broken")
    assert (broken.status, broken.distribution, broken.version) == ("failed", "broken", "2.3")
    assert reason in broken.error
    assert "\n" not in broken.error
    assert others(after, "broken") == others(before)
    assert plugin(after, "neighbour").status == plugin(after, "defaults").status == "loaded"


@every_fault
def test_a_broken_plugin_provides_nothing_and_stops_only_the_run_that_names_it(site: Path, edit: Edit, reason: str) -> None:
    install(site, "broken", edit(HEALTHY))
    registry = load_plugins()
    assert not [e for kind in ("task", "sampler") for e in registry.entries(kind) if e.plugin.name == "broken"]
    assert not any(plugin(registry, "broken").provides.values())
    assert planned(registry, "neighbour/toy", sampler="quiet") == ["neighbour/toy"]
    for name in ("broken/toy", "broken/*"):
        with pytest.raises(PluginError, match=r"plugin 'broken' of broken 1\.0 is failed") as told:
            planned(registry, "neighbour/toy", name)
        assert reason in str(told.value)
    with pytest.raises(PluginError, match=r"sampler 'broken/loud' is asked for, but plugin 'broken' of broken 1\.0 is failed"):
        planned(registry, "neighbour/toy", sampler="broken/loud")
    with pytest.raises(UnknownName, match="no sampler is called 'loud'") as told:
        planned(registry, "neighbour/toy", sampler="loud")
    assert f"Not loaded: broken (broken): failed: {plugin(registry, 'broken').error}" in str(told.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("gone", "ModuleNotFoundError: No module named 'gone'"),
        ("broken:gone", "AttributeError: module 'broken' has no attribute 'gone'"),
        ("not a module", "AttributeError"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_a_broken_plugin(site: Path, value: str, reason: str) -> None:
    before = load_plugins()
    install(site, "broken", plugins=[("broken", value)])
    after = load_plugins()
    assert plugin(after, "broken").status == "failed"
    assert reason in plugin(after, "broken").error
    assert others(after, "broken") == others(before)


def test_a_broken_plugin_leaves_the_other_plugin_of_its_distribution_alone(site: Path) -> None:
    (site / "half.py").write_text("import not_there_at_all")
    install(site, "pair", plugins=[("broken", "half"), ("whole", "pair")])
    registry = load_plugins()
    assert plugin(registry, "broken").status == "failed"
    assert planned(registry, "whole/toy", sampler="whole/loud") == ["whole/toy"]


# --- one name, several owners -----------------------------------------------------------------------------------------------------------


def test_two_plugins_of_one_name_both_fail_and_name_each_other(site: Path) -> None:
    before = load_plugins()
    install(site, "alpha", plugins=[("twin", "alpha")])
    install(site, "beta", plugins=[("twin", "beta")])
    after = load_plugins()
    twins = [p for p in after.plugins if p.name == "twin"]
    assert [(p.distribution, p.status) for p in twins] == [("alpha", "failed"), ("beta", "failed")]
    assert all("more than one plugin is called 'twin': in alpha and beta; uninstall or deny all but one" in p.error for p in twins)
    assert others(after, "twin") == others(before)
    assert planned(after, "neighbour/toy") == ["neighbour/toy"]
    for name in ("twin/toy", "twin/*"):
        with pytest.raises(PluginError, match=r"plugin 'twin' of alpha 1\.0 is failed: more than one plugin is called 'twin'"):
            after.tasks([name])


@pytest.mark.parametrize("rules", [{"deny": ["beta"]}, {"allow": ["alpha", "neighbour"]}, {"environment": "alpha,neighbour"}], ids=str)
def test_of_two_plugins_of_one_name_the_one_that_is_allowed_loads(site: Path, rules: dict[str, Any]) -> None:
    install(site, "alpha", plugins=[("twin", "alpha")])
    install(site, "beta", plugins=[("twin", "beta")])
    registry = load_plugins(**rules)
    assert [p.status for p in registry.plugins if p.name == "twin"] == ["loaded", "blocked"]
    assert "beta" not in sys.modules
    assert planned(registry, "twin/*", sampler="twin/loud") == ["twin/toy"]
    with pytest.raises(UnknownName, match=r"no task is called 'twin/ty'; did you mean 'twin/toy'\?"):
        registry.tasks(["twin/ty"])


def test_an_entry_point_name_that_a_distribution_uses_twice_is_its_authors_to_mend(site: Path) -> None:
    before = load_plugins()
    (site / "second.py").write_text(HEALTHY, encoding="utf-8")
    install(site, "alpha", plugins=[("twin", "alpha"), ("twin", "second")])
    after = load_plugins()
    twins = [p for p in after.plugins if p.name == "twin"]
    assert [p.status for p in twins] == ["failed", "failed"]
    assert all(p.error == "alpha names 2 plugins 'twin'; its author must rename all but one" for p in twins)
    assert others(after, "twin") == others(before)
    with pytest.raises(PluginError, match=r"plugin 'twin' of alpha 1\.0 is failed: alpha names 2 plugins 'twin'"):
        after.find("sampler", "twin/loud")


def test_of_a_distribution_that_is_installed_twice_the_first_on_the_path_counts(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "twice", plugins=[("twice", "twice_of_old")])
    (tmp_path / "upgrade").mkdir()
    install(tmp_path / "upgrade", "twice", version="2.0")
    monkeypatch.syspath_prepend(tmp_path / "upgrade")
    found = plugin(load_plugins(), "twice")
    assert (found.version, found.status) == ("2.0", "loaded")


def test_no_plugin_can_take_the_place_of_the_programs_own(site: Path) -> None:
    before = load_plugins()
    install(site, "usurper", plugins=[("defaults", "usurper")])
    after = load_plugins()
    owners = {p.distribution: p for p in after.plugins if p.name == "defaults"}
    assert (owners["mtcore"].status, owners["usurper"].status) == ("loaded", "failed")
    assert "more than one plugin is called 'defaults': in mtcore and usurper" in owners["usurper"].error
    assert others(after, "defaults") == others(before, "defaults")
    assert after.find("sampler", "defaults/temperature").plugin.distribution == "mtcore"


def test_a_plugin_that_takes_a_name_of_the_programs_own_changes_no_run_that_does_not_name_the_plugin(site: Path) -> None:
    install(site, "rival", HEALTHY.replace('"loud"', '"temperature"'))
    registry = load_plugins()
    assert registry.find("sampler", "temperature").plugin.name == "defaults"
    assert registry.find("sampler", "rival/temperature").plugin.name == "rival"


def test_a_name_that_two_plugins_provide_must_say_which(site: Path) -> None:
    for name in ("alpha", "beta"):
        install(site, name)
    registry = load_plugins()
    with pytest.raises(ConfigError, match="sampler 'loud' is provided by several plugins: say 'alpha/loud' or 'beta/loud'"):
        registry.find("sampler", "loud")
    assert registry.find("sampler", "beta/loud").plugin.name == "beta"
    assert planned(registry, "alpha/toy", "beta/toy") == ["alpha/toy", "beta/toy"]


# --- names that nobody answers to -------------------------------------------------------------------------------------------------------


def test_an_unknown_task_gives_the_nearest_names_and_the_plugins_that_could_not_be_asked(site: Path) -> None:
    install(site, "broken", FAULTS["it exits"][0](HEALTHY))
    with pytest.raises(UnknownName, match=r"no task is called 'neighbor/toy'; did you mean 'neighbour/toy'.*\? Installed: ") as told:
        load_plugins().tasks(["neighbor/toy"])
    assert "Not loaded: broken (broken): failed: SystemExit: 3." in str(told.value)


def test_an_unknown_component_gives_the_nearest_names_and_what_is_installed(site: Path) -> None:
    with pytest.raises(UnknownName, match=r"no sampler is called 'quite'; did you mean 'quiet'\? Installed: .*quiet"):
        load_plugins().find("sampler", "quite")
    with pytest.raises(UnknownName, match=r"no sampler is called 'xyz'\. Installed: "):
        load_plugins().find("sampler", "xyz")


def test_a_pattern_that_matches_nothing_is_an_error(site: Path) -> None:
    with pytest.raises(UnknownName, match=r"no task is called 'neighbour/t\[ab\]\*'"):
        load_plugins().tasks(["neighbour/toy", "neighbour/t[ab]*"])


# --- what may be loaded -----------------------------------------------------------------------------------------------------------------

MARKED = "from pathlib import Path\n\nPath(__file__).with_suffix('.imported').touch()\n"


def imported(site: Path) -> set[str]:
    """The plugins whose modules have been imported, in this process or another."""
    return {marker.stem for marker in site.glob("*.imported")}


@pytest.fixture
def marked(site: Path) -> Path:
    for name in ("mtcore-one", "mtcore-two", "mtcore-three"):
        install(site, name, MARKED + HEALTHY, plugins=[(name.removeprefix("mtcore-"), name.replace("-", "_"))])
    return site


@pytest.mark.parametrize(
    ("rules", "allowed", "reason"),
    [
        ({}, "one two three", ""),
        ({"environment": ""}, "", "not named in MTCORE_PLUGINS"),
        ({"environment": "one"}, "one", "not named in MTCORE_PLUGINS"),
        ({"environment": "one, mtcore-two"}, "one two", "not named in MTCORE_PLUGINS"),
        ({"environment": "nobody"}, "", "not named in MTCORE_PLUGINS"),
        ({"allow": ["one", "mtcore-two"]}, "one two", "not in the run file's plugins.allow"),
        ({"allow": []}, "", "not in the run file's plugins.allow"),
        ({"deny": ["one", "mtcore-two"]}, "three", "in the run file's plugins.deny"),
        ({"deny": ["MTCore_One", "mtcore.two"]}, "three", "in the run file's plugins.deny"),
        ({"allow": ["one", "two"], "deny": ["two"], "environment": "two,one"}, "one", ""),
    ],
    ids=str,
)
def test_what_is_not_allowed_is_blocked_and_never_imported(marked: Path, rules: dict[str, Any], allowed: str, reason: str) -> None:
    registry = load_plugins(**rules)
    assert imported(marked) == {f"mtcore_{name}" for name in allowed.split()}
    assert plugin(registry, "defaults").status == "loaded"
    for name in ("one", "two", "three"):
        found = plugin(registry, name)
        assert found.status == ("loaded" if name in allowed.split() else "blocked")
        assert name in allowed.split() or reason in found.error
        if name in allowed.split():
            assert [e.name for e in registry.tasks([f"{name}/*"])] == [f"{name}/toy"]
        else:
            with pytest.raises(
                PluginError, match=rf"plugin '{name}' of mtcore-{name} 1\.0 is blocked: .*Allow it, or take it out of the run"
            ):
                registry.tasks([f"{name}/*"])


@pytest.mark.parametrize("rules", [{"environment": ""}, {"allow": []}, {"deny": ["defaults", "mtcore"]}], ids=str)
def test_the_programs_own_always_loads(rules: dict[str, Any]) -> None:
    assert plugin(load_plugins(**rules), "defaults").status == "loaded"


def test_a_plugin_called_as_the_program_is_no_part_of_it(site: Path) -> None:
    install(site, "guest", MARKED + HEALTHY, plugins=[("mtcore", "guest")])
    assert plugin(load_plugins(environment=""), "mtcore").status == "blocked"
    assert not imported(site)


def test_the_environment_decides_what_the_command_line_loads(marked: Path) -> None:
    for plugins, loaded in (("two,neighbour", {"two", "neighbour"}), ("", set())):
        rows = answered(mtcore("plugins", "--json", path=marked, plugins=plugins))
        assert {row["name"] for row in rows if row["status"] == "loaded"} == {"defaults", *loaded}
        assert {"one", "three"} <= {row["name"] for row in rows if row["status"] == "blocked"}
    assert imported(marked) == {"mtcore_two"}


def test_a_run_file_decides_what_it_loads(marked: Path) -> None:
    names = 'tasks = ["one/toy"]\nscheduler = { use = "mixture" }\n'
    assert mtcore("plan", run_file(marked, names + '[plugins]\ndeny = ["two"]'), path=marked).returncode == 0
    assert imported(marked) == {"mtcore_one", "mtcore_three"}
    refused = mtcore("plan", run_file(marked, names + '[plugins]\nallow = ["two"]'), path=marked)
    assert refused.returncode == 2
    assert "error: task 'one/toy' is asked for, but plugin 'one' of mtcore-one 1.0 is blocked" in refused.stderr


# --- the command line -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(site: Path) -> Path:
    """A talkative plugin, and one with every fault."""
    install(site, "talker", "print('hello from a plugin')\n" + HEALTHY.replace('"loud"', '"talk"'), commands=[("talk", "talker:talk")])
    for number, (edit, _) in enumerate(FAULTS.values()):
        install(site, f"broken-{number}", edit(HEALTHY))
    return site


def test_plugins_lists_what_each_provides_or_why_it_does_not(shelf: Path) -> None:
    rows = {row["name"]: row for row in answered(mtcore("plugins", "--json", path=shelf))}
    kinds = ("tasks", "filters", "samplers", "schedulers", "methods", "launchers", "observers", "commands")
    assert rows["talker"] == {
        "name": "talker",
        "distribution": "talker",
        "version": "1.0",
        "provides": {**{kind: [] for kind in kinds}, "tasks": ["toy"], "samplers": ["talk"], "commands": ["talk"]},
        "status": "loaded",
        "error": None,
    }
    assert {"output-kind"} <= set(rows["defaults"]["provides"]["filters"])
    for number, (_, reason) in enumerate(FAULTS.values()):
        row = rows[f"broken-{number}"]
        assert row["status"] == "failed"
        assert row["provides"] == {kind: [] for kind in kinds}
        assert reason in row["error"]
    assert rows["neighbour"]["status"] == "loaded"


def test_tasks_lists_the_tasks_of_what_is_loaded(shelf: Path) -> None:
    rows = {row["name"]: row for row in answered(mtcore("tasks", "--json", path=shelf))}
    assert rows["talker/toy"] == {
        "name": "talker/toy",
        "plugin": "talker",
        "distribution": "talker",
        "output": "binary",
        "input": "single-sentence",
        "labels": ["no", "yes"],
        "metric": "accuracy",
        "train_rows": None,
        "validation_rows": None,
        "status": "loaded",
    }
    assert "neighbour/toy" in rows
    assert not [name for name in rows if name.startswith("broken")]


def test_tables_are_printed_where_plugins_are_broken(shelf: Path) -> None:
    listed = mtcore("plugins", path=shelf)
    assert listed.returncode == 0
    assert "SystemExit: 3" in listed.stdout
    tasks = mtcore("tasks", path=shelf)
    assert tasks.returncode == 0
    assert "neighbour/toy" in tasks.stdout
    assert "not loaded: broken-2 (broken-2): failed: SystemExit: 3" in tasks.stderr


def test_a_task_whose_code_raises_says_so_and_the_others_are_counted(site: Path) -> None:
    moody = swap("    def rows", "    def __init__(self, data=None):\n        raise OSError('not in the mood')\n\n    def rows")
    install(site, "moody", moody(HEALTHY))
    rows = {row["name"]: row for row in answered(mtcore("tasks", "--count", "--json", path=site, plugins="moody,neighbour"))}
    assert rows["moody/toy"]["status"] == "OSError: not in the mood"
    assert rows["moody/toy"]["train_rows"] is None
    assert rows["neighbour/toy"]["status"] == "read"
    assert (rows["neighbour/toy"]["train_rows"], rows["neighbour/toy"]["validation_rows"]) == (6, 4)


def test_a_plan_fails_by_name_for_the_plugin_it_names_and_works_for_any_other(shelf: Path) -> None:
    works = mtcore("plan", run_file(shelf, 'tasks = ["neighbour/*"]'), "--json", path=shelf)
    assert [group["tasks"] for group in answered(works)["groups"]] == [["neighbour/toy"]]
    fails = mtcore("plan", run_file(shelf, 'tasks = ["neighbour/*", "broken-2/*"]'), "--json", path=shelf)
    assert (fails.returncode, fails.stdout) == (2, "")
    assert "Traceback" not in fails.stderr
    assert fails.stderr.endswith(
        "error: task 'broken-2/*' is asked for, but plugin 'broken-2' of broken-2 1.0 is failed: SystemExit: 3. "
        "Mend or reinstall it, or take it out of the run.\n"
    )


# --- 200 plugins ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(site: Path) -> Path:
    for number in range(200):
        command = "\nimport click\n\n\n@click.command()\ndef run():\n    print('run')\n"
        name = f"crowd-{number:03}"
        install(site, name, MARKED + command, plugins=[(name, f"crowd_{number:03}")], commands=[(name, f"crowd_{number:03}:run")])
    return site


def test_help_lists_the_commands_of_200_plugins_and_imports_none_of_them_nor_torch(crowd: Path) -> None:
    run = mtcore("--help", path=crowd, options=["-X", "importtime"])
    assert run.returncode == 0
    assert re.findall(r"^ *(crowd-\d+) +From \1\.$", run.stdout, re.MULTILINE) == [f"crowd-{number:03}" for number in range(200)]
    assert not imported(crowd)
    assert "mtcore.cli" in modules_of(run)
    assert not modules_of(run) & {"torch", "transformers", "datasets", "accelerate", "numpy", "pydantic", "mtcore.plugins"}


def test_discovery_finds_200_plugins_and_imports_none(crowd: Path) -> None:
    names = {f"crowd-{number:03}" for number in range(200)}
    assert names <= {entry_point.name for entry_point, _, _ in discover(GROUP)}
    registry = load_plugins(environment="neighbour")
    assert names <= {p.name for p in registry.plugins if p.status == "blocked"}
    assert not imported(crowd)
    assert planned(registry, "neighbour/toy") == ["neighbour/toy"]


def test_a_command_imports_its_own_plugin_and_no_other(crowd: Path) -> None:
    run = mtcore("crowd-007", path=crowd)
    assert (run.returncode, run.stdout) == (0, "run\n")
    assert imported(crowd) == {"crowd_007"}


@pytest.mark.parametrize("command", ["plugins", "tasks", "plan"])
def test_listing_and_planning_need_no_torch(site: Path, command: str) -> None:
    arguments = [run_file(site, 'tasks = ["neighbour/*"]')] if command == "plan" else []
    run = mtcore(command, *arguments, path=site, options=["-X", "importtime"])
    assert run.returncode == 0
    assert "mtcore.plugins" in modules_of(run)
    assert not modules_of(run) & {"torch", "transformers", "datasets", "accelerate"}


# --- a wheel from elsewhere -------------------------------------------------------------------------------------------------------------


def test_a_wheel_from_elsewhere_is_used_where_it_is_named_and_changes_nothing_where_it_is_not(site: Path, tmp_path: Path) -> None:
    names_it = 'tasks = ["elsewhere/toy"]\nscheduler = { use = "mixture", sampler = { use = "loud", factor = 2.0 } }'
    names_another = 'tasks = ["neighbour/toy"]\nscheduler = { use = "mixture", sampler = { use = "quiet" } }'
    without = mtcore("plan", run_file(site, names_another), path=site)
    unknown = mtcore("plan", run_file(site, names_it), path=site)
    assert (unknown.returncode, "no sampler is called 'loud'" in unknown.stderr) == (2, True)

    wheel = tmp_path / "mtcore_elsewhere-0.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("elsewhere.py", HEALTHY)
        for name, text in metadata("mtcore-elsewhere", "0.3", [("elsewhere", "elsewhere")]).items():
            file.writestr(f"mtcore_elsewhere-0.3.dist-info/{name}", text)
        file.writestr(
            "mtcore_elsewhere-0.3.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True, timeout=120)

    (row,) = [row for row in answered(mtcore("plugins", "--json", path=site)) if row["name"] == "elsewhere"]
    assert (row["distribution"], row["version"], row["status"]) == ("mtcore-elsewhere", "0.3", "loaded")
    assert (row["provides"]["tasks"], row["provides"]["samplers"]) == (["toy"], ["loud"])
    assert "elsewhere/toy" in {row["name"] for row in answered(mtcore("tasks", "--json", path=site))}
    plan = answered(mtcore("plan", run_file(site, names_it), "--json", path=site))
    assert [list(stage["tasks"]) for group in plan["groups"] for stage in group["stages"]] == [["elsewhere/toy"]]
    assert any("as loud as you like" in warning for warning in plan["warnings"])
    assert mtcore("plan", run_file(site, names_another), path=site).stdout == without.stdout != ""
