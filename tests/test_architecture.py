"""What the house promises of itself: what is imported when, and what plugins may do at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "datasets", "accelerate", "sklearn"}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "module", ["mtcore.cli", "mtcore.plugins", "mtcore.planning", "mtcore.defaults", "mtcore.cli.plan", "mtcore.cli.catalogue"]
)
def test_importing_a_light_module_loads_nothing_heavy(module):
    assert run(f"import {module}, sys; print(*sorted({HEAVY!r} & set(sys.modules)))") == ""


def test_plugins_of_the_repository_import_nothing_heavy_at_module_level():
    for path in [*ROOT.glob("plugins/*/*.py"), *ROOT.glob("contrib_tasks/*/*.py"), *ROOT.glob("contrib_tasks/*/*/*.py")]:
        if "tests" in path.parts:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            )
            assert not {str(n).split(".")[0] for n in names} & HEAVY, path


def test_no_function_of_core_passes_keyword_arguments_through():
    for path in [*(ROOT / "core").rglob("*.py"), *ROOT.glob("plugins/*/mtcore_*/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg:  # a library's interface may demand that they are taken
                calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
                handed_on = [k for call in calls for k in call.keywords if k.arg is None and ast.unparse(k.value) == node.args.kwarg.arg]
                assert not handed_on, f"{path}:{node.lineno}"


def test_no_check_is_an_assert():
    for path in [*(ROOT / "core").rglob("*.py"), *ROOT.glob("plugins/*/mtcore_*/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"


def test_nothing_of_core_reads_or_writes_pickle():
    for path in [*(ROOT / "core").rglob("*.py"), *ROOT.glob("plugins/*/mtcore_*/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("import pickle", "torch.load(", "torch.save(", "trust_remote_code")), path
