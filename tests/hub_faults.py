"""Faults of a Hub, injected on purpose: what the stand-in does wrong, where, when and how often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

ENDPOINTS: Final = frozenset(
    """
    auth-check branch commit commits create delete discussions info lfs-batch lfs-complete lfs-duplicate lfs-part
    lfs-put lfs-verify merge move paths-info preupload refs resolve settings super-squash tag tree validate-yaml whoami
    xet-token
    """.split()
)
"""What can go wrong, by the names that the server's routes have."""

What = int | Literal["drop", "html", "slow", "truncate"] | Callable[[], object]


@dataclass(slots=True)
class Fault:
    """One thing that goes wrong."""

    where: str
    """Endpoint's name, one of `ENDPOINTS`."""
    when: Literal["before", "after"]
    """Whether the server has acted when it happens. After, the act stands and its answer is lost or spoilt."""
    what: What
    """A status code; "drop": the connection closes without an answer; "html": a 502 page as a proxy writes it;
    "slow": the answer comes `seconds` late; "truncate": half the body; or a function to call, after which the request
    goes on as if nothing had been."""
    times: int = 1
    """How many requests it strikes."""
    skip: int = 0
    """How many requests pass first."""
    retry_after: int | None = None
    """Seconds in the `Retry-After` header of a status code."""
    seconds: float = 1.0
    """How late "slow" is."""

    def __post_init__(self) -> None:
        if self.where not in ENDPOINTS:
            raise ValueError(f"{self.where!r} is no endpoint; there are {', '.join(sorted(ENDPOINTS))}")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read `where:when:what[:times[:skip]]`.

        Raises:
            ValueError: If it is not of that form.
        """
        where, when, what, *numbers = text.split(":")
        if when not in {"before", "after"} or not (what.isdecimal() or what in {"drop", "html", "slow", "truncate"}):
            raise ValueError(f"{text!r} is no fault; needed is where:when:what[:times[:skip]], as commit:after:drop")
        return cls(where, when, int(what) if what.isdecimal() else what, *map(int, numbers))


@dataclass(frozen=True, slots=True)
class Logged:
    """A request as it came."""

    where: str
    method: str
    path: str
    query: str
    user: str


@dataclass(slots=True)
class Faults:
    """The faults still to happen, and every request so far."""

    pending: list[Fault] = field(default_factory=list)
    log: list[Logged] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, where: str, when: Literal["before", "after"], what: What, **more: float | None) -> Fault:
        """Plan a fault; the arguments are those of `Fault`."""
        fault = Fault(where, when, what, **more)
        self.pending.append(fault)
        return fault

    def strike(self, where: str, when: str) -> Fault | None:
        """Return the fault that this request meets now, and count it."""
        with self._lock:
            for fault in self.pending:
                if (fault.where, fault.when) != (where, when) or fault.times == 0:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def count(self, where: str) -> int:
        """Return how many requests came to an endpoint."""
        return sum(request.where == where for request in self.log)
