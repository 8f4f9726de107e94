"""`mtcore base`: build a small base model from a corpus."""

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Literal

import click

from mtcore.base import BaseProgress, BaseRecipe, build_base
from mtcore.interrupts import listening


@click.command()
@click.argument("name")
@click.option(
    "--corpus",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Folder or file of .txt or .jsonl (field 'text'), gzipped or not.",
)
@click.option("--out", default="runs", show_default=True, type=click.Path(path_type=Path), help="Where runs keep their bases.")
@click.option("--passes", default=1, show_default=True, type=click.IntRange(1), help="Passes over the corpus.")
@click.option("--width", default=BaseRecipe.width, show_default=True, type=click.IntRange(8))
@click.option("--layers", default=BaseRecipe.layers, show_default=True, type=click.IntRange(1))
@click.option("--heads", default=BaseRecipe.heads, show_default=True, type=click.IntRange(1))
@click.option("--vocabulary", default=BaseRecipe.vocabulary, show_default=True, type=click.IntRange(300))
@click.option("--context", default=BaseRecipe.context, show_default=True, type=click.IntRange(16))
@click.option("--learning-rate", default=BaseRecipe.learning_rate, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--seed", default=1, show_default=True)
@click.option("--precision", default=BaseRecipe.precision, show_default=True, type=click.Choice(["fp32", "bf16"]), help="bf16 needs a GPU.")
def base(
    name: str,
    corpus: Path,
    out: Path,
    passes: int,
    width: int,
    layers: int,
    heads: int,
    vocabulary: int,
    context: int,
    learning_rate: float,
    seed: int,
    precision: Literal["fp32", "bf16"],
) -> None:
    """Build the base NAME: a byte-level BPE tokenizer and a Qwen2-architecture decoder trained on the corpus.

    A run file then uses it with `model = "NAME"`. The same command resumes.
    """
    recipe = BaseRecipe(
        passes=passes,
        width=width,
        layers=layers,
        heads=heads,
        vocabulary=vocabulary,
        context=context,
        learning_rate=learning_rate,
        seed=seed,
        precision=precision,
    )
    folder = out / "bases" / name
    is_built = (folder / "base.json").is_file()
    if not is_built:
        click.echo(f"building {folder}: " + ", ".join(f"{f.name} {getattr(recipe, f.name)}" for f in fields(recipe)), err=True)
    with listening() as stop:
        build_base(corpus, folder, recipe, _Ticker(), stop=stop)
    click.echo(f"{folder} was built already" if is_built else f"{folder}")


class _Ticker:
    """Progress on stderr: a moving line on a terminal, one every 30 s elsewhere."""

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()
        self._first = -1

    def __call__(self, progress: BaseProgress) -> None:
        now = time.monotonic()
        if self._first < 0:
            self._first, self._started = progress.step, now
        is_terminal = sys.stderr.isatty()
        if now - self._said < (0.5 if is_terminal else 30) and progress.step != progress.steps:
            return
        self._said = now
        left = (now - self._started) / max(1, progress.step - self._first) * (progress.steps - progress.step)
        pace = f"{progress.tokens_per_second:,.0f} tokens/s, {left / 60:.1f} min left"
        line = f"step {progress.step:,} of {progress.steps:,}, loss {progress.loss:.3f}, {pace}"
        print(
            f"\r\x1b[2K{line}" if is_terminal else line,
            end="" if is_terminal and progress.step != progress.steps else "\n",
            file=sys.stderr,
            flush=True,
        )
