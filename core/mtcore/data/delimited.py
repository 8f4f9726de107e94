"""Read rows of CSV and TSV files: the first line names the columns, and lines that are no record are set aside."""

import csv
import gzip
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from mtcore.data.sources import MAX_LINE, MAX_SNIPPET, RawRow, broken_off
from mtcore.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_delimited(path: Path, needed: Collection[str]) -> Iterator[RawRow]:
    """Rows of a .csv or .tsv file, gzipped or not, as text by column; cells are quoted as in CSV in both.

    Raises DataError where the first line does not name the needed columns, or the file breaks off.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))  # one for the whole process: never lowered
    opened = gzip.open if path.suffix == ".gz" else open
    # bytes that are not UTF-8 become lone surrogates, so that they spoil their own record and no other
    with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines: list[str] = []
        reader = csv.reader(_kept(file, lines), delimiter=DELIMITERS[Path(path.name.removesuffix(".gz")).suffix], strict=True)
        header: list[str] | None = None
        while True:
            lines.clear()
            first = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                if header is None:
                    raise DataError(f"{path}: its first line, which names the columns, cannot be read: {error}") from None
                # an open quote takes all lines up to the next one with it: each of them is a row that is lost
                for number, line in enumerate(lines):
                    yield RawRow(None, str(path), first + number, f"not a record: {error}", _snippet([line]))
                continue
            except (EOFError, OSError, zlib.error) as error:
                raise broken_off(path, first - 1, error) from None
            if header is None:
                header = _checked_header(path, cells, needed)
            elif cells:
                problem = _problem(cells, header)
                value = None if problem else dict(zip(header, cells, strict=True))
                yield RawRow(value, str(path), first, problem, _snippet(lines))
    if header is None:
        raise DataError(f"{path} is empty; its first line must name the columns ({', '.join(needed)})")


def _kept(lines: Iterable[str], kept: list[str]) -> Iterator[str]:
    """The lines, each also appended to `kept`: what a record that cannot be read looked like."""
    for line in lines:
        kept.append(line)
        yield line


def _checked_header(path: Path, names: list[str], needed: Collection[str]) -> list[str]:
    if not _is_text(names):
        raise DataError(f"{path}: its first line is not UTF-8; save the file as UTF-8 (spreadsheets call it 'CSV UTF-8')")
    known = ", ".join(map(repr, names))
    if missing := [name for name in needed if name not in names]:
        raise DataError(
            f"{path}: there is no column {' and no '.join(map(repr, missing))}. Its first line names {known or 'nothing'}; "
            "correct it, or say which column is meant in [rows] columns (fields) or answer"
        )
    if twice := sorted({name for name in needed if names.count(name) > 1}):
        raise DataError(f"{path}: its first line names {', '.join(map(repr, twice))} more than once; rename all but one")
    return names


def _problem(cells: list[str], header: list[str]) -> str:
    if len(cells) != len(header):
        return f"cells do not fit the columns: there are {len(cells)}, not {len(header)}"
    return "" if _is_text(cells) else "not UTF-8; save the file as UTF-8 (spreadsheets call it 'CSV UTF-8')"


def _is_text(cells: list[str]) -> bool:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _snippet(lines: list[str]) -> str:
    raw = "".join(lines)[:MAX_SNIPPET].rstrip("\r\n")
    return raw.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
