"""Keeping other libraries off the screen."""

import sys

__all__ = ["quieten_downloads", "quieten_libraries"]


def quieten_libraries() -> None:
    """Leave the screen to our own lines: no bars of other libraries, and only their errors."""
    import warnings

    import datasets
    from transformers.utils import logging as transformers_logging

    # Each of these libraries still calls names that the other has deprecated; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\.")

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def quieten_downloads() -> None:
    """Leave out the bars of the Hub's client where nobody watches; loads none of the libraries above."""
    from ..hub import show_no_progress

    if not sys.stderr.isatty():
        show_no_progress()
