"""The reference pages are what the code makes of them, and no option is without a meaning."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from pydantic import Field

from mtcore.config import RunConfig
from mtcore.contracts import Options
from mtcore.plugins import load_plugins
from mtcore.registry import KINDS
from mtcore.types import SamplerUse

DOCS = Path(__file__).parent.parent / "docs"
COMPONENTS = [entry for kind in KINDS for entry in load_plugins(environment="").entries(kind)]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """The pages, made in a process of their own: click keeps a command's help option as whoever called it first had it."""
    script = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['pages']()))"
    run = subprocess.run([sys.executable, "-c", script, str(DOCS / "generate.py")], capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout))


@pytest.mark.parametrize("page", ["run-file.md", "commands.md"])
def test_a_reference_page_is_what_the_code_makes_of_it(made: dict[str, str], page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == made[page], "make the reference pages anew: python docs/generate.py"


def test_every_key_has_a_meaning(generate: ModuleType) -> None:
    tables = [field.annotation for field in RunConfig.model_fields.values() if generate.is_table(field.annotation)]
    for model in [RunConfig, *tables, *(entry.cls.Config for entry in COMPONENTS)]:
        assert set(model.model_fields) <= set(generate.docstrings(model)), f"{model.__qualname__} has fields without a docstring"


@pytest.mark.parametrize("entry", COMPONENTS, ids=lambda e: e.name)
def test_every_component_of_the_box_says_what_it_is(generate: ModuleType, entry) -> None:
    assert generate.first_paragraph(entry.cls).endswith((".", ")."))
    assert f"#### `{entry.name}`" in generate.run_file()


class Toy(Options):
    """Options of every sort."""

    rate: float = Field(gt=0, le=1)
    """How fast."""
    kind: Literal["a", "b"] = "a"
    """Which
    way."""
    names: tuple[str, ...] = Field(default=(), min_length=1)
    """Whose."""
    sampler: SamplerUse = SamplerUse.model_validate({"use": "temperature", "tau": 3.0})
    """How drawn."""
    limit: int | None = None
    """How many."""


def test_a_table_says_type_bounds_default_and_meaning(generate: ModuleType) -> None:
    assert generate.key_table(Toy, "toy.").splitlines()[2:] == [
        "| `toy.rate` | number, >\u00a00, ≤\u00a01 | required | How fast. |",
        '| `toy.kind` | `"a"` or `"b"` | `"a"` | Which way. |',
        "| `toy.names` | list of texts, at least 1 | `[]` | Whose. |",
        '| `toy.sampler` | sampler | `{ use = "temperature", tau = 3.0 }` | How drawn. |',
        "| `toy.limit` | whole number | not set | How many. |",
    ]
