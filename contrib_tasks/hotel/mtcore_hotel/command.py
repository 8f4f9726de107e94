"""`mtcore hotel`: write the suite's rows into a data folder, and its raw text into a corpus."""

import gzip
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import click

from mtcore.errors import UnknownName
from mtcore_hotel.documents import archive
from mtcore_hotel.scenarios import Source
from mtcore_hotel.tasks import TASKS

SHARES: dict[Source, float] = {"chat": 0.4, "phone": 0.3, "reviews": 0.1, "rides": 0.1, "mail": 0.1}


@click.group()
def hotel() -> None:
    """The hotel suite's generator: rows for its tasks, raw text for a base model."""


@hotel.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--scale", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Share of the full train rows.")
@click.option("--least", default=0, show_default=True, type=click.IntRange(0), help="Train rows that a small task keeps at any scale.")
@click.option(
    "--held-out", type=click.IntRange(1), help="Validation rows, and as many test rows, of each task.  [default: a tenth, at least 500]"
)
@click.option("--task", "chosen", multiple=True, metavar="NAME", help="Only this task; may be repeated.")
def rows(folder: Path, scale: float, least: int, held_out: int | None, chosen: tuple[str, ...]) -> None:
    """Write the rows of the tasks into FOLDER/hotel: a data folder for run files. The same call writes the same bytes."""
    for name in chosen:
        if name not in TASKS:
            raise UnknownName(f"the hotel suite has no task {name!r}; it has {', '.join(TASKS)}")
    for name in chosen or TASKS:
        made = TASKS[name].made(scale, least, held_out)
        for split in made.sizes:
            write_lines(folder / "hotel" / name / f"{split}.jsonl.gz", made.split(split))
        click.echo(f"{folder / 'hotel' / name}: " + ", ".join(f"{size:,} {split}" for split, size in made.sizes.items()))


@hotel.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--documents", "count", default=100_000, show_default=True, type=click.IntRange(1), help="How many documents.")
def text(folder: Path, count: int) -> None:
    """Write raw text into FOLDER, for `mtcore base`: conversations, reviews and emails that stand in no task's rows, with the notes and
    answers that an archive holds after them."""
    for source, share in SHARES.items():
        write_lines(folder / f"{source}.jsonl.gz", ({"text": text} for text in islice(archive(source), round(count * share))))
    click.echo(f"{folder}: {count:,} documents")


@hotel.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="A folder that `mtcore hotel rows` wrote.  [default: full size]")
def floors(data: Path | None) -> None:
    """Print what majority, best keyword and bag of words reach on every task, and the most that can be reached."""
    from mtcore.cli.common import load_registry, print_table
    from mtcore_hotel.floors import floors as found

    def percent(score: float | None) -> str:
        return "–" if score is None else f"{100 * score:.1f}"

    lines = [
        [f.task, f"{f.rows:,}", *map(percent, (f.majority, f.keyword, f.bag_of_words, f.ceiling))] for f in found(load_registry(), data)
    ]
    print_table([["task", "train rows", "majority", "best keyword", "bag of words", "ceiling"], *lines])


def write_lines(path: Path, lines: Iterable[object]) -> None:
    """Gzipped JSON lines, without a date or a name in the header: the same lines are the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for line in lines:
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
