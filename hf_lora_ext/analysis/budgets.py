"""What an adapter may keep, as it is asked for: parameters, a share of them, or up to the knee. Pure."""

from __future__ import annotations

from typing import Final

from ..errors import BudgetError, ConfigError

__all__ = ["KNEE", "as_parameters", "parse_budget"]

KNEE: Final = "knee"


def as_parameters(budget: int | float, whole: int) -> int:
    """Return a budget in parameters.

    >>> as_parameters(0.5, 1000)
    500

    Args:
        budget: Parameters, or as a fraction up to 1.0 the share of the whole.
        whole: Parameters of the adapter.

    Raises:
        BudgetError: If it is nothing, or above the whole.
        ConfigError: If it is no number.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise ConfigError(f"budget {budget!r} is no number; give parameters such as 200000, or a share such as 0.5")
    if not budget > 0:
        raise BudgetError(
            f"a budget of {budget:g} keeps nothing; the adapter has {whole:,} parameters, give some of them"
        )
    if isinstance(budget, float) and budget > 1:
        raise BudgetError(f"a share of {budget:g} is above 1; give a share up to 1.0, or whole parameters")
    found = int(budget * whole) if isinstance(budget, float) else budget
    if found > whole:
        raise BudgetError(f"a budget of {found:,} parameters is above the {whole:,} that the adapter has; give less")
    return found


def parse_budget(text: str) -> int | float | str:
    """Return a budget as it is written on a command line.

    >>> parse_budget("50%"), parse_budget("0.5"), parse_budget("200,000"), parse_budget("knee")
    (0.5, 0.5, 200000, 'knee')

    Raises:
        ConfigError: If it is none of these.
    """
    plain = text.strip().lower().replace(",", "").replace("_", "")
    if plain == KNEE:
        return KNEE
    try:
        if plain.endswith("%"):
            return float(plain[:-1]) / 100
        return float(plain) if "." in plain else int(plain)
    except ValueError:
        raise ConfigError(f"budget {text!r} is not understood; write 50%, 200000 or {KNEE}") from None
