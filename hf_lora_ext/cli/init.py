"""`hf-lora init`: a recipe of one's own, from one that comes with the package."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ConfigError
from ..runs.shipped import shipped_recipe

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora init quickstart
  hf-lora init qlora_7b recipes/mine.yaml

A file that exists is never written over. Exit code 2: there is no such recipe, or FILE cannot be written.
"""


@click.command("init", epilog=EPILOG)
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
def command(name: str, file: Path | None) -> None:
    """Copy a recipe that comes with the package, to be changed.

    FILE is NAME.yaml in this folder if left out.
    """
    shipped = shipped_recipe(name)
    target = file or Path(f"{shipped.file.stem}.yaml")
    # Its own commands then name the copy.
    text = shipped.file.read_text(encoding="utf8").replace(f"recipes/{shipped.name}.yaml", target.as_posix())
    try:
        with target.open("x", encoding="utf8") as copy:
            copy.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{target} exists and is left as it is; name another file") from error
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}); name another file") from error
    click.echo(f"wrote {target}; next: hf-lora train {target}")
