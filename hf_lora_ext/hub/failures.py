"""What a failed call to the Hub means: try again, give up, or somebody else was first."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from ..errors import PushError
from .landing import TRIES, wait_seconds

__all__ = ["NO_TOKEN", "Failure", "HubAway", "failure_of", "is_network_failure", "patiently"]

Result = TypeVar("Result")
NO_TOKEN: Final = "no token was found; log in with `hf auth login`, or set HF_TOKEN"
"""What to say to who has not logged in."""
_MESSAGE_LIMIT: Final = 400
_DISK_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


class HubAway(PushError):
    """The Hub did not answer, or not with sense, however often it was asked; later it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed call, understood."""

    kind: Literal["transient", "refused", "conflict", "absent"]
    """Whether another try can help; `conflict` is 409 and 412, `absent` a repository or revision that is not there."""
    text: str
    """What happened, in one line and without a token."""
    retry_after: float | None = None
    """How long the server asks to wait, in seconds."""

    @property
    def told(self) -> str:
        """What happened, with the wait that the server asks for."""
        return f"{self.text}, and asks to wait {self.retry_after:,.0f} s" if self.retry_after else self.text


def is_network_failure(error: BaseException) -> bool:
    """Tell a transport failure of the client's HTTP library, whichever it is, from a bug."""
    return any(parent.__name__ in {"TransportError", "RequestException"} for parent in type(error).__mro__)


def failure_of(error: Exception) -> Failure | None:
    """Return what an exception of the Hub's client means, or None where it is a bug."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return Failure(kind="refused", text="HF_HUB_OFFLINE is set; unset it")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return Failure(kind="refused", text=NO_TOKEN)
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _of_answer(error, error.response)
    if isinstance(error, errors.EntryNotFoundError):
        return Failure(kind="transient", text=_line(error))  # a cache that a failed download left behind
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return Failure(kind="refused", text=f"the disk is full ({_line(error)}); free some space")
    if is_network_failure(error) or isinstance(error, OSError):
        return Failure(kind="transient", text=f"the Hub is out of reach ({_line(error)})")
    if "JSONDecodeError" in {parent.__name__ for parent in type(error).__mro__}:
        return Failure(kind="transient", text="the Hub answered with something that is no JSON")
    if isinstance(error, ValueError):
        return Failure(kind="refused", text=_line(error))
    if isinstance(error, RuntimeError):  # what hf_xet raises for a transfer that failed
        return Failure(kind="transient", text=f"the transfer failed ({_line(error)})")
    return None


def _of_answer(error: Any, response: Any) -> Failure:
    from huggingface_hub import errors

    status, text = response.status_code, _line(error.server_message or error)
    if status in {408, 425, 429} or status >= 500:
        asked = response.headers.get("Retry-After", "")
        text = "the Hub is over its rate limit for you" if status == 429 else f"the Hub answered {status}"
        return Failure(kind="transient", text=text, retry_after=float(asked) if asked.isdecimal() else None)
    if status in {409, 412}:
        return Failure(kind="conflict", text=text)
    if isinstance(error, errors.GatedRepoError):
        return Failure(kind="refused", text=f"gated: accept its terms on its Hub page ({text})")
    if status == 401 and not isinstance(error, errors.RepositoryNotFoundError):
        return Failure(kind="refused", text="the Hub does not accept the token; make a new one, and `hf auth login`")
    if status == 404 or isinstance(error, errors.RepositoryNotFoundError):
        return Failure(kind="absent", text=text)
    if status == 403 and "create_pr=1" in text:
        text = "you may not write there with this token; `hf-lora push --create-pr` makes a pull request"
    return Failure(kind="refused", text=f"the Hub refuses ({status}): {text}")


def _line(error: object) -> str:
    """Return an error's text in one line, without request ids and tokens."""
    text = re.sub(r"\(Request ID: [^)]*\)", "", str(error))
    text = re.sub(r"\b(hf|api_org)_\w{8,}|Bearer \S+", "[token]", " ".join(text.split()))
    return text[:_MESSAGE_LIMIT] or type(error).__name__


def patiently(call: Callable[[], Result], doing: str, tries: int = TRIES) -> Result:
    """Return what a call that can be repeated gives, after tries with growing pauses where the Hub or the line fails.

    Args:
        call: Reads, or writes something that is the same when written twice.
        doing: What it does, for the message: "reading me/model".
        tries: How often it is made.

    Raises:
        HubAway: If it fails to the end.
        PushError: If it is refused.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            return call()
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            pause = wait_seconds(attempt, failure.retry_after, tries) if failure.kind == "transient" else None
            if pause is None:
                kind = HubAway if failure.kind == "transient" else PushError
                raise kind(f"{doing}: {failure.told}") from error
        time.sleep(pause)
