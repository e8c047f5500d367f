"""Rewards that a recipe can name: pure functions of a completion and of what its row says.

Each gives a number from 0 to 1, the same for the same texts. No recipe imports code: what is not here is a reward model
(`reward: model`), or a function of your own given to TRL's trainer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import nearest
from .recipe_rules import FROM_1, POSITIVE, TEXT, Rule, find_problems, is_names

__all__ = [
    "MODEL",
    "REWARDS",
    "RewardFunction",
    "exact_match",
    "length",
    "named_rewards",
    "passed_as",
    "regex",
    "reward_columns",
    "reward_problems",
    "tagged",
    "word_f1",
]

RewardFunction = Callable[..., list[float]]

MODEL: Final = "model"
"""The reward that a reward model gives."""


def length(completion: str, characters: int) -> float:
    """Return how near a text comes to a length: 1 at it, falling evenly to 0 at nothing and at twice as much.

    >>> length("four", 5)
    0.8
    """
    return max(0.0, 1 - abs(len(completion.strip()) - characters) / characters)


def exact_match(completion: str, reference: str) -> float:
    """Return 1 where two texts are the same but for case and white space, else 0.

    >>> exact_match(" Forty  two", "forty two")
    1.0
    """
    return float(completion.casefold().split() == reference.casefold().split())


def word_f1(completion: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall over words, whatever their order.

    Reference: SQuAD, arXiv 1606.05250, section 6.1; here articles count and punctuation parts words.

    >>> word_f1("the cat sat", "the cat")
    0.8
    """
    said, wanted = (Counter(re.findall(r"\w+", text.casefold())) for text in (completion, reference))
    if not (both := (said & wanted).total()):
        return 0.0
    return 2 * both / (said.total() + wanted.total())


def regex(completion: str, pattern: str) -> float:
    r"""Return 1 where a regular expression is found in a text, white space around it left out, else 0.

    >>> regex("Return it.\n", r"^[A-Z].*\.$")
    1.0
    """
    return float(re.search(pattern, completion.strip()) is not None)


def tagged(completion: str, tags: Sequence[str]) -> float:
    """Return 1 where a text is these tags in this order, each once and with something in it, and no more; else 0.

    >>> tagged("<think>Six by seven.</think> <answer>42</answer>", ["think", "answer"])
    1.0
    """
    parts = []
    for tag in map(re.escape, tags):
        inside = rf"(?:(?!</?{tag}>).)*"
        parts.append(rf"<{tag}>{inside}\S{inside}</{tag}>")
    return float(re.fullmatch(r"\s*".join(parts), completion.strip(), re.DOTALL) is not None)


@dataclass(frozen=True, slots=True)
class _Reward:
    """A reward of the table."""

    score: Callable[[str, Any], float]
    """From a completion and what it is measured by."""
    setting: str
    """The one key that it needs; `column` is one of the data's, whose value in the row is what it is measured by."""
    rule: Rule
    """What that key may be."""


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and bool(re.compile(value))
    except re.error:
        return False


_COLUMN: Final = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "the column of the data that holds the answer")
REWARDS: Final[Mapping[str, _Reward]] = {
    "length": _Reward(length, "characters", FROM_1),
    "exact_match": _Reward(exact_match, "column", _COLUMN),
    "word_f1": _Reward(word_f1, "column", _COLUMN),
    "regex": _Reward(regex, "pattern", Rule(_is_pattern, "a regular expression of Python")),
    "format": _Reward(tagged, "tags", Rule(is_names, "a list of tag names, e.g. [think, answer]")),
}
"""Name in a recipe → what it is."""


def reward_problems(rewards: Sequence[Any]) -> list[str]:
    """Return what is wrong with a recipe's `rewards`, one line each."""
    found: list[str] = []
    for number, reward in enumerate(rewards, 1):
        where = f"rewards[{number}]"
        name = reward.get("reward") if isinstance(reward, Mapping) else None
        if name not in (*REWARDS, MODEL):
            hint = nearest(str(name or ""), (*REWARDS, MODEL))
            found.append(f"{where}: found {name or reward!r}, needed `reward:` with a name that is known; {hint}")
            continue
        setting = MODEL if name == MODEL else REWARDS[name].setting
        rule = TEXT if name == MODEL else REWARDS[name].rule
        rules = {"reward": TEXT, "weight": POSITIVE, setting: rule}
        found += find_problems(reward, rules, required=(setting,), prefix=f"{where}.")
    return found


def reward_columns(rewards: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns of the data that the rewards read, each once."""
    return tuple(dict.fromkeys(reward["column"] for reward in rewards if "column" in reward))


def passed_as(column: str) -> str:
    """Return what a column is called where TRL passes it on: names such as `completion` it keeps to itself."""
    return f"row_{column}"


def reward_function(reward: Mapping[str, Any], name: str) -> RewardFunction:
    """Return a reward as TRL calls it: with all completions of a batch, and the columns of their rows by name.

    Args:
        reward: Its name and settings, as in a recipe.
        name: What TRL calls it in its metrics.
    """
    kind = REWARDS[reward["reward"]]
    setting = reward[kind.setting]

    def scores(completions: Sequence[Any], **columns: Any) -> list[float]:
        wanted = columns[passed_as(setting)] if kind.setting == "column" else [setting] * len(completions)
        return [kind.score(_text_of(said), by) for said, by in zip(completions, wanted, strict=True)]

    scores.__name__ = name
    return scores


def named_rewards(rewards: Sequence[Mapping[str, Any]]) -> list[RewardFunction | str]:
    """Return what TRL takes as `reward_funcs`: functions with names of their own, and ids of reward models."""
    found: list[RewardFunction | str] = []
    seen: Counter[str] = Counter()
    for reward in rewards:
        name = reward["reward"]
        seen[name] += 1
        if name == MODEL:
            found.append(reward[MODEL])
            continue
        found.append(reward_function(reward, name if seen[name] == 1 else f"{name}_{seen[name]}"))
    return found


def _text_of(completion: Any) -> str:
    """Return a completion's text; of messages, of the last."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1].get("content") or "")
