"""What a base model's licence asks of an adapter that is passed on, by the licence's Hub identifier.

Read, word for word: section 1.b of `models/llama3_1/LICENSE`, `llama3_2`, `llama3_3` and `llama4` and of
`License/Llama2.txt` in https://github.com/meta-llama/llama-models, of `LICENSE` in
https://github.com/meta-llama/llama3, and sections 3.1 and 3.2 of the Gemma Terms of Use as last modified on March 24,
2025 (https://ai.google.dev/gemma/terms, in a copy). From them are the attributions, "Built with …", what the name
begins with, and where the policies are; www.llama.com/…/license is where Meta shows the agreements. Llama 2 alone asks
neither for "Built with …" nor for a name. Not covered: other licences' duties, and what no program can see, such as
the 700 million users of section 2. This names what to do; it is no legal advice, and the agreement is what binds.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["LICENCE_TERMS", "LicenceTerms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceTerms:
    """What one licence asks for."""

    agreement: str
    """Where the agreement is; a copy of it goes with the adapter."""
    policy: str
    """Where the uses are listed that it forbids, to every user of the adapter too."""
    attribution: str
    """The line that goes into a `NOTICE` file, word for word."""
    built_with: str | None = None
    """What is displayed prominently."""
    name_prefix: str | None = None
    """What the adapter's name begins with."""


def _llama(version: str, slug: str, *, meta: str = "") -> LicenceTerms:
    name = f"{meta}Llama {version}"
    return LicenceTerms(
        agreement=f"https://www.llama.com/{slug}/license/",
        policy=f"https://www.llama.com/{slug}/use-policy/",
        attribution=(
            f"{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. "
            "All Rights Reserved."
        ),
        built_with="Built with Meta Llama 3" if meta else "Built with Llama",
        name_prefix="Llama 3" if meta else "Llama",
    )


LICENCE_TERMS: Final = {
    "llama2": LicenceTerms(
        agreement="https://ai.meta.com/llama/license/",
        policy="https://ai.meta.com/llama/use-policy/",
        attribution=(
            "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
            "All Rights Reserved."
        ),
    ),
    "llama3": _llama("3", "llama3", meta="Meta "),
    "llama3.1": _llama("3.1", "llama3_1"),
    "llama3.2": _llama("3.2", "llama3_2"),
    "llama3.3": _llama("3.3", "llama3_3"),
    "llama4": _llama("4", "llama4"),
    "gemma": LicenceTerms(
        agreement="https://ai.google.dev/gemma/terms",
        policy="https://ai.google.dev/gemma/prohibited_use_policy",
        attribution="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
}
"""Hub identifier → terms; what a licence that is not here asks for is not checked."""
