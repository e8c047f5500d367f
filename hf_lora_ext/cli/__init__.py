"""The `hf-lora` command: one file a verb, each loaded only when it is called.

Exit codes: 0 done; 2 something given was wrong, or nothing fits, said in one message; 130 interrupted; 1 a bug, with
its traceback.
"""

import sys
from importlib import import_module
from typing import Final

import click

__all__ = ["main"]

VERBS: Final = {
    "preset": "Print a fine-tune's every value, with reason and source.",
    "plan": "Say what memory a run needs, by component, and what fits.",
    "recipes": "List the recipes that come with the package, or show one.",
    "init": "Copy a recipe that comes with the package, to be changed.",
    "train": "Train the LoRA adapter that a recipe describes.",
    "sweep": "Try a recipe at many points, and say which is best.",
    "ranks": "Say which modules of an adapter have rank to spare, and which lack it.",
    "curve": "Say what an adapter would lose at every smaller size.",
    "evaluate": "Say what an adapter changes on held-out rows, with intervals.",
    "compress": "Write a smaller adapter: the directions that are worth most.",
    "export": "Write an adapter in the form that an inference engine loads.",
    "merge": "Write the whole model with an adapter in its weights.",
    "card": "Write or refresh the model card from a run's facts.",
    "push": "Publish an adapter on the Hub, checked before and verified after.",
    "verify": "Check that an adapter on the Hub is whole and loads.",
    "rollback": "Put an earlier version of an adapter back as a new commit.",
}
"""Verb → the first line of its help, so that `hf-lora --help` loads no verb."""


EPILOG: Final = """
\b
Examples:
  hf-lora preset 7B --gpu 24
  hf-lora plan 70B --gpu 24 --gpus 2
  hf-lora recipes
  hf-lora init qlora_7b mine.yaml
  hf-lora train quickstart
  hf-lora sweep recipes/sweep_rank.yaml --dry-run
  hf-lora ranks out/quickstart
  hf-lora curve out/quickstart
  hf-lora evaluate out/quickstart --metrics loss,rouge
  hf-lora compress out/quickstart out/half --budget 50%
  hf-lora export out/quickstart out/portable --for vllm
  hf-lora card out/quickstart
  hf-lora push out/quickstart me/docstrings --dry-run

Exit codes: 0 done; 2 something given was wrong, or nothing fits; 130 interrupted; 1 a bug.
"""


class _Verbs(click.Group):
    """A group whose commands are modules of this package."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = import_module(f".{name}", __name__).command
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb's command; where there is none of that name, say which is nearest."""
        from ..errors import nearest

        if arguments[0] not in VERBS and not arguments[0].startswith("-"):
            context.fail(f"no command {arguments[0]!r}; {nearest(arguments[0], VERBS)}")
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.version_option(package_name="hf_lora_ext", prog_name="hf-lora")
def _group() -> None:
    """Fine-tune with LoRA, right-sized."""


def _tell(problem: str) -> None:
    """Print what went wrong, with what a name from outside may hold that would move the cursor or hide text escaped."""
    shown = (letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in problem)
    click.echo(f"hf-lora: {''.join(shown)}", err=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    from ..errors import LoraExtError

    try:
        _group.main(args=arguments, prog_name="hf-lora", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "hf-lora")
        _tell(f"{error.format_message().rstrip('.')}; see `{command} --help`")
        sys.exit(2)
    except LoraExtError as error:
        _tell(str(error))
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("hf-lora: interrupted; the same command again goes on where it stopped", err=True)
        sys.exit(130)
