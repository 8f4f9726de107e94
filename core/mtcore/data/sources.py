"""Read raw rows: JSON lines from a data folder, or a data set from the Hugging Face Hub; every row knows where it came from."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtcore.errors import DataError, MissingData

MAX_LINE = 1 << 20
"""Bytes; a longer line is set aside unread."""
MAX_SNIPPET = 120
"""Bytes or characters of a bad row that are shown."""


@dataclass(frozen=True)
class RawRow:
    """A row as it was found: its value, or the problem that kept it from being read."""

    value: Mapping[str, Any] | None
    file: str
    line: int
    problem: str = ""
    snippet: str = ""


@dataclass(frozen=True)
class HubSource:
    """Where a data set lives on the Hugging Face Hub."""

    path: str
    config: str | None = None
    splits: Mapping[str, str] | None = None
    """Our split → theirs, where the names differ."""


def task_rows(data: Path | None, folder: str, split: str, hub: HubSource | None = None) -> Iterator[RawRow]:
    """Rows of `data/folder/split.jsonl[.gz]` where a data folder is given, of the Hub otherwise.

    A missing `test` split is empty. Raises MissingData, naming each place that was looked at, for any other.
    """
    if data is not None:
        paths = [data / folder / f"{split}.jsonl.gz", data / folder / f"{split}.jsonl"]
        found = next((p for p in paths if p.is_file()), None)
        if found is not None:
            yield from read_jsonl(found)
        elif split != "test":
            raise MissingData(
                f"{folder}: no {split} rows. The data folder is {data}, and neither {folder}/{paths[0].name} nor {folder}/{paths[1].name} is there. "
                "Put the file there, or name another folder with MTCORE_DATA or `data =`"
                + (f" (without one, the Hub's {hub.path} is read)." if hub else ".")
            )
    elif hub is not None:
        yield from read_hub(hub, folder, split)
    elif split != "test":
        raise MissingData(f"{folder}: no {split} rows. Set MTCORE_DATA or `data =` to a folder that holds {folder}/{split}.jsonl.gz.")


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """Rows of a JSON-lines file, gzipped or not; a line that cannot be read becomes a `RawRow` with a problem, and the rest goes on.

    Raises DataError where the file breaks off: nobody knows how many rows stood behind.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        number = 0
        try:
            while True:
                number += 1
                raw = file.readline(MAX_LINE + 1)
                if not raw:
                    return
                if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
                    yield RawRow(None, str(path), number, f"longer than {MAX_LINE} bytes", _snippet(raw))
                    while (raw := file.readline(MAX_LINE)) and not raw.endswith(b"\n"):
                        pass
                elif raw.strip():
                    yield _parse(raw, str(path), number)
        except (EOFError, OSError, zlib.error) as error:
            raise broken_off(path, number - 1, error) from None


def read_hub(hub: HubSource, task: str, split: str) -> Iterator[RawRow]:
    """Rows of a Hub data set through `datasets`, class numbers turned back into their names."""
    import datasets

    theirs = (hub.splits or {}).get(split, split)
    where = hub.path + (f" ({hub.config})" if hub.config else "")
    try:
        if split == "test" and theirs not in datasets.get_dataset_split_names(hub.path, hub.config):
            return
        rows = datasets.load_dataset(hub.path, hub.config, split=theirs)
    except Exception as error:
        raise MissingData(
            f"{task}: no {split} rows. MTCORE_DATA and `data =` are not set, and {where} split {theirs!r} is not to be had from the Hugging Face Hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}). "
            f"Set MTCORE_DATA to a folder that holds {task}/{split}.jsonl.gz, or check the network."
        ) from error
    classes = {name: feature for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)}
    for number, row in enumerate(rows):
        named = {name: feature.int2str(row[name]) for name, feature in classes.items() if row[name] is not None and row[name] >= 0}
        yield RawRow({**row, **named}, where, number)


def broken_off(path: Path, lines: int, error: Exception) -> DataError:
    """What to raise where a file cannot be read to its end."""
    what = "the archive is cut off or damaged; fetch it again" if path.suffix == ".gz" else "have its disk checked, or fetch it again"
    return DataError(f"{path} breaks off after {lines} lines ({error}), and what stood behind them is lost: {what}")


def _parse(raw: bytes, file: str, line: int) -> RawRow:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return RawRow(None, file, line, f"not UTF-8 at byte {error.start}", _snippet(raw))
    except (ValueError, RecursionError) as error:
        return RawRow(None, file, line, f"not a JSON row: {error}", _snippet(raw))
    if not isinstance(value, dict):
        return RawRow(None, file, line, f"a JSON {type(value).__name__}, not an object", _snippet(raw))
    return RawRow(value, file, line, "", _snippet(raw))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands there twice")
    return dict(pairs)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _snippet(raw: bytes) -> str:
    return raw[:MAX_SNIPPET].decode("utf-8", "backslashreplace").rstrip("\n")
