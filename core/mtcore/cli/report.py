"""`mtcore report`: print the report of a finished run."""

from pathlib import Path

import click

from mtcore.cli.common import json_option, print_json
from mtcore.errors import RunError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--html", "as_html", is_flag=True, help="Write the page of the run anew, and print where it is.")
@json_option
def report(folder: Path, as_html: bool, as_json: bool) -> None:
    """Print the comparison or the report that a run left in FOLDER (a run's folder, or one variant's)."""
    import json

    if as_html:
        from mtcore.runfolder import write_page

        path = write_page(folder)
        print_json({"html": str(path)}) if as_json else click.echo(path)
        return
    for name in ("comparison", "report"):
        path = folder / f"{name}.{'json' if as_json else 'md'}"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            print_json(json.loads(text)) if as_json else click.echo(text)
            return
    inside = sorted(str(p.parent) for p in folder.glob("**/report.json"))
    raise RunError(f"{folder} holds no report. Reports below it: {', '.join(inside) or 'none'}.")
