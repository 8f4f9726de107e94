"""The documentation says what the code does."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from mtcore import contracts, hookspecs
from mtcore.config import load_run
from mtcore.plugins import load_plugins

ROOT = Path(__file__).parent.parent
MODULES = [
    p for folder in ("core/mtcore", "plugins", "contrib_tasks") for p in sorted((ROOT / folder).rglob("*.py")) if "tests" not in p.parts
]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("plugins/*/*.md")),
    *sorted(ROOT.glob("contrib_tasks/*/*.md")),
]


def shown(path):
    relative = path.relative_to(ROOT)
    return str(relative.relative_to("core/mtcore") if relative.parts[0] == "core" else relative)


def first_line(path):
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def test_the_map_holds_every_module_and_its_first_line():
    listed = dict(re.findall(r"^\* `([^`]+)` — (.+)$", (ROOT / "docs/map.md").read_text(encoding="utf-8"), re.M))
    assert listed == {shown(path): first_line(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_a_modules_first_line_is_one_sentence(path):
    assert re.fullmatch(r".{20,160}[.:]", first_line(path)), f"{shown(path)}: {first_line(path)!r}"


def test_the_hook_page_names_every_hook_and_every_method_of_its_contract_with_its_arguments():
    text = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
    hooks = [name for name in vars(hookspecs) if name.startswith("register_")]
    assert re.findall(r"^\| `(register_\w+)`", text, re.M) == hooks
    for line in re.findall(r"^\| `register_.*$", text, re.M):
        name = re.search(r"`(\w+)`: ", line).group(1)
        for method in getattr(contracts, name).__abstractmethods__:
            _, *arguments = inspect.signature(getattr(getattr(contracts, name), method)).parameters
            assert f"`{method}({', '.join(arguments)})`" in line, f"{name}.{method} is not in the line of its hook as it is"


@pytest.mark.parametrize("path", sorted((ROOT / "docs/runs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_run_file_of_the_docs_resolves(path):
    registry = load_plugins()
    for config in load_run(path).variants.values():
        registry.method(config.method)
        registry.scheduler(config.scheduler)
        registry.scheduler(config.reference)
        registry.filter(config.filter)
        assert registry.tasks(config.tasks)


def test_every_command_that_the_readme_types_exists():
    from mtcore.cli import COMMANDS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\.venv/bin/mtcore (\w+)", text)) <= set(COMMANDS)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"^    make (\w+)", text, re.M)) <= set(targets)


def test_every_run_file_that_the_docs_name_is_there():
    named = {
        n
        for page in ROOT.glob("**/*.md")
        if ".venv" not in page.parts
        for n in re.findall(r"docs/runs/[\w-]+\.toml", page.read_text(encoding="utf-8"))
    }
    assert named
    assert all((ROOT / name).is_file() for name in named), named


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert re.match("https?://", target) or (page.parent / target).exists(), target


def test_the_front_page_of_the_site_leads_to_every_page():
    tables = re.findall(r"^```{toctree}\n(.*?)^```$", (ROOT / "docs/index.md").read_text(encoding="utf-8"), re.M | re.S)
    listed = [line for table in tables for line in table.splitlines() if line and not line.startswith(":")]
    assert sorted([*listed, "index"]) == sorted(page.stem for page in ROOT.glob("docs/*.md"))


def test_a_plugin_in_the_repository_ships_a_readme_tests_and_a_licence():
    for pyproject in [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("contrib_tasks/*/pyproject.toml")]:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        assert project["license"] == "Apache-2.0"
        assert (pyproject.parent / "README.md").is_file()
        assert list(pyproject.parent.glob("tests/test_*.py"))
        assert {"mtcore", "mtcore.commands"} & project["entry-points"].keys()
