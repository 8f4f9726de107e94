"""The tutorials, typed line by line: files are written as their pages say, commands run in order, and show what the pages show."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:^`(?P<path>[^`\n]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
END = "END OF THE FILE"
SCRIPT = """#!{python}
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.exit({function}())
"""
SCRIPTS = {"mtcore": ("mtcore.cli", "main"), "pip": ("pip._internal.cli.main", "main"), "pytest": ("pytest", "main")}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder as `make install` leaves it: an environment of its own in .venv, which sees all that this one has."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=tmp_path, check=True)
    environment = tmp_path / ".venv"
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "parent.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name, (module, function) in SCRIPTS.items():
        script = environment / "bin" / name
        script.write_text(SCRIPT.format(python=environment / "bin/python", module=module, function=function))
        script.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("page", ["first-task", "first-sampler"])
def test_what_a_tutorial_types_does_what_it_shows(page: str, home: Path) -> None:
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    steps = list(read(text))
    assert sum(END not in command for command, _ in steps) == len(re.findall(r"^\$ ", text, re.M)) > 5
    marker = "=== step {} ==="
    lines = ["set -e"]
    for number, (command, _) in enumerate(steps):
        lines += [f"echo '{marker.format(number)}'", command]
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("MTCORE_", "PYTHON"))}
    typed = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=home,
        env={**keep, "HOME": str(home), "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert typed.returncode == 0, typed.stdout
    outputs = re.split(r"^=== step \d+ ===\n", typed.stdout, flags=re.M)[1:]
    assert len(outputs) == len(steps)
    for (command, shown), output in zip(steps, outputs, strict=True):
        require_shown(command, shown, output)


def read(page: str) -> Iterator[tuple[str, list[str]]]:
    """What a page has typed, in order: shell commands, each with the lines that it shows; a file of the page is a command that writes it."""
    for block in BLOCK.finditer(page):
        text = block["text"]
        if block["path"]:
            yield f"cat > {block['path']} <<'{END}'\n{text}{END}", []
        elif block["language"] == "console":
            for typed in re.split(r"^\$ ", text, flags=re.M)[1:]:
                command, *shown = typed.splitlines()
                yield command, shown


def require_shown(command: str, shown: list[str], output: str) -> None:
    """Every line that a page shows is a line of the output, in this order; … stands for anything, and spaces are as wide as they like."""
    lines = iter(output.splitlines())
    for line in [line for line in shown if line.strip() not in ("", "…")]:
        words = " ".join(line.split())
        pattern = ".*".join(re.escape(part.strip()) for part in words.split("…"))
        assert any(re.search(pattern, " ".join(found.split())) for found in lines), f"$ {command}\nshows no {line!r} there:\n{output}"
