"""What would fit where nothing does: the nearest changes of method, sequence, rank, devices, cards or host memory.

`plan_run` returns the plan that fits, or raises `DoesNotFit` with remedies; each of them has been planned too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, islice
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from ..choices.adapter import WIDE_STARTS, short_count
from ..choices.run import check_run
from ..choices.wishes import wish_features
from ..errors import ConfigError
from .fitting import Fit, find_fit, least_needed, may_fit
from .preset_plans import FULL, PlanRequest

if TYPE_CHECKING:
    from ..hardware import Hardware
    from .plans import Plan

__all__ = ["DoesNotFit", "Remedy", "nearest_remedies", "plan_run"]

GIB: Final = 2**30
CARDS: Final = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192, 288)
"""GiB of customary cards."""
HOSTS: Final = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""GiB of customary hosts."""
IN_ONE_MACHINE: Final = 8
"""Cards that one machine customarily has at most."""
SHORTEST: Final = 64
"""Tokens below which a shorter sequence is no remedy."""
LOWEST_RANK: Final = 8
PACKED: Final = {
    **{"lora": "qlora", "rslora": "qlora", "adalora": "qlora", "qlora8": "qlora"},
    **{"dora": "qdora", FULL: "lora"},
}
"""Method → the nearest one that needs less."""
ENOUGH: Final = 3
"""Remedies that a refusal names, where there are so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A changed request, or changed hardware, for which a plan fits."""

    words: str
    """What is changed."""
    request: PlanRequest
    """The wishes, changed or not."""
    hardware: Hardware
    """The hardware, changed or not."""
    found: Fit
    """The plan that then fits."""

    def __str__(self) -> str:
        needed, host = self.found.estimate.needed / GIB, self.found.host / GIB
        return f"{self.words} ({_plan_words(self.found.plan)}: {needed:.1f} GiB each, {host:.0f} GiB of host memory)"


class DoesNotFit(ConfigError):
    """Nothing that was wished for fits; `remedies` are the nearest changes that would."""

    def __init__(self, message: str, remedies: tuple[Remedy, ...]) -> None:
        super().__init__(message)
        self.remedies = remedies


def plan_run(request: PlanRequest, hardware: Hardware) -> Fit:
    """Return the fastest plan that fits the hardware.

    Raises:
        ConfigError: If the memory of the devices is not known, or the wishes do not work together.
        DoesNotFit: If nothing fits; with what would.
    """
    if hardware.memory_gib is None:
        raise ConfigError("the memory of the device is not known; give it, e.g. gpu_memory_gib=24")
    if request.method != FULL:
        check_run(request.method or "lora", request.run, hardware, request.lora_config, wish_features(request.adapter))
    for narrower in _starts(request):
        if (found := find_fit(request.shape, hardware, narrower.wishes(hardware))) is not None:
            return found
    request = narrower
    wishes = request.wishes(hardware)
    remedies = nearest_remedies(request, hardware)
    would = "what would fit: " + "; ".join(map(str, remedies)) if remedies else "nothing near it fits"
    raise DoesNotFit(f"{_found(request, hardware, wishes)}; {would}", remedies)


def _starts(request: PlanRequest) -> tuple[PlanRequest, ...]:
    """Return the request at every start width, the widest first; once where rank does not move."""
    if not request.adapter.adaptive_rank:
        return (request,)
    return tuple(replace(request, start_factor=factor) for factor in WIDE_STARTS)


def _found(request: PlanRequest, hardware: Hardware, wishes: tuple[Plan, ...]) -> str:
    """Return what is needed at the least, and what is there."""
    needed, host = least_needed(request.shape, hardware, wishes)
    there = hardware.memory_gib or 0
    if needed <= there * GIB:
        fitting = find_fit(request.shape, replace(hardware, host_memory_gib=None), wishes)
        host = fitting.host if fitting else host
        return (
            f"what fits the devices needs {host / GIB:.1f} GiB of host memory and {hardware.host_memory_gib:g} GiB "
            "is there"
        )
    said = f"training needs {needed / GIB:.1f} GiB on each device at the least and {there:g} GiB is there"
    experts = request.shape.expert_parameters
    if experts and any(plan.is_packed and not plan.experts_quantised for plan in wishes):
        said += f" (4 bits leave the experts, {short_count(experts)} parameters, as they are)"
    return said


def _plan_words(plan: Plan) -> str:
    """Return a plan in a few words."""
    parts = [f"base in {plan.base}", f"micro-batch {plan.micro_batch}"]
    parts += ["checkpointing"] if plan.checkpointing else []
    parts += [plan.sharding + (" with offload" if plan.offload else "")] if plan.devices > 1 else []
    return ", ".join(parts)


_Changed = tuple[PlanRequest, "Hardware"]
_Change = Callable[[PlanRequest, "Hardware"], Iterator[_Changed]]
_State = tuple[PlanRequest, "Hardware", tuple["Plan", ...]]
"""Request, hardware, and the plans that the request allows there."""


def nearest_remedies(request: PlanRequest, hardware: Hardware) -> tuple[Remedy, ...]:
    """Return the nearest changes for which a plan fits: the first of each kind, then pairs and further ones, to three.

    A pair holds only changes of which neither is enough alone.
    """
    found, alone, searches = [], {}, []
    for change in _CHANGES:
        states = list(_states(change, request, hardware))
        fitting = _fitting(states, request, hardware)
        first = next(fitting, None)
        alone[change] = len(states) if first is None else first[0]
        found += [] if first is None else [first[1]]
        searches.append(fitting)
    for pair in combinations(_CHANGES, 2):
        if len(found) >= ENOUGH:
            break
        fitting = _fitting(_pairs(pair, alone, request, hardware), request, hardware)
        found += [first[1]] if (first := next(fitting, None)) else []
        searches.append(fitting)
    further = (remedy for fitting in (*reversed(searches[: len(_CHANGES)]), *searches) for _, remedy in fitting)
    return (*found, *islice(further, max(0, ENOUGH - len(found))))


def _states(change: _Change, request: PlanRequest, hardware: Hardware) -> Iterator[_State]:
    """Yield the states that a change leads to, without those whose wishes do not work together."""
    return ((changed, on, wishes) for changed, on in change(request, hardware) if (wishes := changed.wishes(on)))


def _pairs(
    pair: tuple[_Change, _Change], alone: Mapping[_Change, int], request: PlanRequest, hardware: Hardware
) -> list[_State]:
    """Return the states that two changes together lead to, the nearest first, where neither is enough alone."""
    one, other = pair
    states = [
        (far + further, state)
        for far, middle in enumerate(islice(_states(one, request, hardware), alone[one]))
        for further, state in enumerate(islice(_states(other, *middle[:2]), alone[other]))
    ]
    return [state for _, state in sorted(states, key=lambda pair: pair[0])]


def _fitting(states: list[_State], request: PlanRequest, hardware: Hardware) -> Iterator[tuple[int, Remedy]]:
    """Yield (index, remedy) for each state in which a plan fits."""
    for index, (changed, on, wishes) in enumerate(states):
        if not may_fit(changed.shape, on, wishes) or (found := find_fit(changed.shape, on, wishes)) is None:
            continue
        words = _difference(request, hardware, changed, on)
        yield index, Remedy(words=words, request=changed, hardware=on, found=found)


def _difference(request: PlanRequest, hardware: Hardware, changed: PlanRequest, on: Hardware) -> str:
    """Return what is changed, in words."""
    words = []
    if changed.method != request.method:
        words.append(f"method {changed.method}")
    if changed.adapter.rank != request.adapter.rank:
        words.append(f"rank {changed.adapter.rank} instead of {request.adapter.rank}")
    if changed.run.max_length != request.run.max_length:
        words.append(f"{changed.run.max_length} tokens instead of {_length(request, hardware)}")
    if on.devices == hardware.devices and changed.run.sharding != request.run.sharding:
        words.append(f"another sharding than {request.run.sharding}")
    if on.host_memory_gib != hardware.host_memory_gib:
        words.append(f"{on.host_memory_gib:g} GiB of host memory")
    if (cards := _cards_in_words(hardware, on)) is not None:
        words.append(cards)
    return " and ".join(words)


def _cards_in_words(hardware: Hardware, on: Hardware) -> str | None:
    larger, more = on.memory_gib != hardware.memory_gib, on.devices != hardware.devices
    if not (larger or more):
        return None
    of = f"cards of {on.memory_gib:g} GiB" if larger else "such cards"
    machines = f" in {on.machines} machines" if on.machines != hardware.machines else ""
    return (f"a {of.replace('cards', 'card')}" if on.devices == 1 else f"{on.devices} {of}") + machines


def _length(request: PlanRequest, hardware: Hardware) -> int:
    return request.wishes(hardware)[0].sequence


def _packed(request: PlanRequest, hardware: Hardware) -> Iterator[_Changed]:
    method = PACKED.get(request.method or "")
    while method is not None and request.shape.packed is None:  # a packed checkpoint is not packed again
        changed: Any = method
        yield replace(request, method=changed), hardware
        method = PACKED.get(method)


def _shorter(request: PlanRequest, hardware: Hardware) -> Iterator[_Changed]:
    length = _length(request, hardware)
    while (length := length * 3 // 4 // 8 * 8) >= SHORTEST:
        yield replace(request, run=replace(request.run, max_length=length)), hardware


def _lower_rank(request: PlanRequest, hardware: Hardware) -> Iterator[_Changed]:
    rank = request.adapter.rank or 0
    while (rank := rank // 2) >= LOWEST_RANK:
        yield replace(request, adapter=replace(request.adapter, rank=rank)), hardware


def _more_host(request: PlanRequest, hardware: Hardware) -> Iterator[_Changed]:
    known = hardware.host_memory_gib
    for host in HOSTS if known is not None else ():
        if host > (known or 0):
            yield request, replace(hardware, host_memory_gib=host)


def _shared(request: PlanRequest, hardware: Hardware) -> Iterator[_Changed]:
    if request.run.sharding is not None and hardware.devices > 1:
        yield _with_free_sharding(request), hardware


def _larger_cards(request: PlanRequest, hardware: Hardware) -> Iterator[_Changed]:
    for card in CARDS:
        if card > (hardware.memory_gib or 0):
            yield request, replace(hardware, memory_gib=card)


def _more_devices(request: PlanRequest, hardware: Hardware) -> Iterator[_Changed]:
    for devices in (2, 4, 8, 16, 32, 64):
        if devices > hardware.devices:
            machines = max(hardware.machines, ceil(devices / IN_ONE_MACHINE))
            yield _with_free_sharding(request), replace(hardware, devices=devices, machines=machines)


def _with_free_sharding(request: PlanRequest) -> PlanRequest:
    return replace(request, run=replace(request.run, sharding=None))


_CHANGES: Final[tuple[_Change, ...]] = (
    *(_packed, _shared, _lower_rank, _more_host, _shorter),
    *(_larger_cards, _more_devices),
)
"""What can be changed, the nearest first; each yields states that ask for more and more."""
