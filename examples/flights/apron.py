"""What an apron is and what a plan for it costs: shared by the program, the heuristic and the replay of the year.

An instance is one airport-day:

    {"airport": "EWR", "day": "2013-02-08", "costs": {...},
     "gates": [{"id": "A1", "group": "A"}, ...],
     "flights": [{"id": ..., "carrier": ..., "home": "C", "ready": 315, "scheduled": 375, "delay_probability": 0.2}, ...]}

`ready` and `scheduled` are minutes since local midnight: an aircraft needs a gate from one to the other, and longer when
it leaves late. A plan names a gate, or "remote" (a stand reached by bus), for each flight, and for how many minutes
after its schedule that gate is kept free. Everything is priced in
passenger-weighted minutes of one flight: a bus ride, a walk from another terminal, and the minutes for which the next
aircraft stands before an occupied gate.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from palan.models.contract import Violation

REMOTE = "remote"

# Minutes for which a gate is kept free behind a departure. A few steps keep the program small, and a controller thinks
# in them anyway; behind the longest nobody is expected to wait.
BUFFERS = (0, 10, 20, 30, 45, 60, 90)

# What a bus, a walk and the longest wait cost, and how long the next aircraft waits on average behind a departure that
# is late (or is not), for each of BUFFERS: means of min(max(dep_delay - buffer, 0), 60) from January to April, a
# cancelled flight counting as late and keeping nobody waiting. From May to December they are at most 9 % higher.
COSTS: dict[str, Any] = {
    "remote": 40.0,
    "other_group": 8.0,
    "longest_wait": 60.0,
    "wait_if_late": [37.6, 31.9, 25.9, 21.2, 15.9, 12.2, 0.0],
    "wait_if_punctual": [1.4, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],
}

# Gates by terminal, sized so that an ordinary day fits without buffers and a busy one does not; and each carrier's home.
GATES = {"EWR": {"A": 8, "B": 6, "C": 20}, "JFK": {"T4": 11, "T5": 14, "T8": 9}, "LGA": {"B": 10, "C": 8, "D": 10}}
HOMES = {
    "EWR": {"UA": "C", "EV": "C", "B6": "A", "AA": "A", "MQ": "A", "US": "A", "VX": "A", "": "B"},
    "JFK": {"B6": "T5", "DL": "T4", "9E": "T4", "VX": "T4", "": "T8"},
    "LGA": {"DL": "D", "9E": "D", "WN": "B", "MQ": "C", "US": "C", "EV": "D", "": "B"},
}


def stands(airport: str) -> list[dict[str, str]]:
    """Return the gates of an airport with the group (terminal) that each belongs to."""
    return [{"id": f"{group}{number}", "group": group} for group, size in GATES[airport].items() for number in range(1, size + 1)]


def occupancy(seats: int | None) -> int:
    """Return the minutes for which an aircraft of this size needs a gate before it leaves."""
    if seats is None:
        return 60
    return 75 if seats >= 250 else 60 if seats >= 100 else 45


def expected_wait(probability: float, buffer: int, costs: Mapping[str, Any]) -> float:
    """Return the minutes for which the next aircraft is expected to wait when a gate is kept free for `buffer` minutes."""
    step = BUFFERS.index(buffer)
    return float(probability * costs["wait_if_late"][step] + (1.0 - probability) * costs["wait_if_punctual"][step])


def buffer_within(slack: float) -> int:
    """Return the longest buffer that fits in the minutes before the next aircraft; zero where there are none."""
    return BUFFERS[max(bisect_right(BUFFERS, slack) - 1, 0)]


def widest_buffers(instance: Mapping[str, Any], assignments: Mapping[str, str]) -> dict[str, int]:
    """Return for each flight at a gate the longest buffer that the next aircraft there allows."""
    buffers = {}
    for order in sequences(instance, assignments).values():
        for flight, following in pairwise(order):
            buffers[flight["id"]] = buffer_within(following["ready"] - flight["scheduled"])
        buffers[order[-1]["id"]] = BUFFERS[-1]
    return buffers


def sequences(instance: Mapping[str, Any], assignments: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return the flights of each gate in the order in which they use it."""
    at: dict[str, list[dict[str, Any]]] = {}
    for flight in sorted(instance["flights"], key=lambda flight: (flight["ready"], flight["scheduled"], flight["id"])):
        gate = assignments.get(flight["id"], REMOTE)
        if gate != REMOTE:
            at.setdefault(gate, []).append(flight)
    return at


def price(instance: Mapping[str, Any], assignments: Mapping[str, str], buffers: Mapping[str, int]) -> dict[str, float]:
    """Return what a plan is expected to cost, in minutes, from the data and the decisions alone.

    Returns:
        remote: flights on remote stands; other_group: flights away from home; wait: expected minutes of waiting; objective.
    """
    costs, group = instance["costs"], {gate["id"]: gate["group"] for gate in instance["gates"]}
    places = [(flight, assignments.get(flight["id"], REMOTE)) for flight in instance["flights"]]
    remote = sum(place == REMOTE for _, place in places)
    away = sum(place != REMOTE and group.get(place) != flight["home"] for flight, place in places)
    wait = sum(
        expected_wait(flight["delay_probability"], buffers.get(flight["id"], 0), costs)
        for flight, place in places
        if place != REMOTE
    )
    return {
        "remote": float(remote),
        "other_group": float(away),
        "wait": wait,
        "objective": wait + costs["remote"] * remote + costs["other_group"] * away,
    }


def plan_of(instance: Mapping[str, Any], assignments: Mapping[str, str], buffers: Mapping[str, int]) -> dict[str, Any]:
    """Return the plan that callers get: the decisions, what they are expected to cost, and what is needed to price
    them again when the delays are known."""
    kpis = price(instance, assignments, buffers)
    return {
        "airport": instance["airport"],
        "day": instance["day"],
        "assignments": dict(assignments),
        "buffers": dict(buffers),
        "times": {flight["id"]: [flight["ready"], flight["scheduled"]] for flight in instance["flights"]},
        "costs": dict(instance["costs"]),
        "objective": kpis.pop("objective"),
        "kpis": kpis,
    }


def violations(instance: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[Violation]:
    """Check a plan against the data alone: a place for every flight, no overlap, room for the buffers, a true price."""
    assignments, buffers = plan["assignments"], plan["buffers"]
    known = {gate["id"] for gate in instance["gates"]}
    flights = {flight["id"] for flight in instance["flights"]}
    for flight in sorted(flights - set(assignments)):
        yield Violation("every flight has a place", flight, 1.0, "no gate and no remote stand")
    for flight in sorted(set(assignments) - flights):
        yield Violation("only flights of the day", flight, 1.0, "not in the instance")
    odd = {flight: buffer for flight, buffer in buffers.items() if buffer not in BUFFERS}
    for flight, buffer in odd.items():
        yield Violation("a buffer that can be priced", flight, 1.0, f"{buffer} is none of {BUFFERS}")
    if odd:
        return
    for flight, gate in assignments.items():
        if gate != REMOTE and gate not in known:
            yield Violation("a gate of this airport", flight, 1.0, f"there is no gate {gate}")
    for gate, order in sequences(instance, assignments).items():
        for flight, following in pairwise(order):
            overlap = flight["scheduled"] + buffers.get(flight["id"], 0) - following["ready"]
            if overlap > 0:
                yield Violation("one aircraft at a gate", gate, float(overlap), f"{flight['id']} and {following['id']}")
    stated, priced = float(plan["objective"]), price(instance, assignments, buffers)["objective"]
    if abs(stated - priced) > 1e-3:
        yield Violation("the stated objective", "objective", abs(stated - priced), f"stated {stated}, priced {priced}")


def realised_cost(plan: Mapping[str, Any], delays: Mapping[str, float | None]) -> float:
    """Return what the plan did cost with the delays that came true, in the same minutes as its objective.

    Waiting is counted until the late aircraft is gone, from the moment when the next one comes. A cancelled flight
    (None) keeps nobody waiting, and neither does one whose outcome is not told.
    """
    costs, times, kpis = plan["costs"], plan["times"], plan["kpis"]
    at: dict[str, list[tuple[int, int, str]]] = {}
    for flight, gate in plan["assignments"].items():
        if gate != REMOTE:
            ready, scheduled = times[flight]
            at.setdefault(gate, []).append((ready, scheduled, flight))
    wait = 0.0
    for order in at.values():
        for (_, scheduled, flight), (following, _, _) in pairwise(sorted(order)):
            overrun = scheduled + (delays.get(flight) or 0.0) - following
            wait += min(max(overrun, 0.0), costs["longest_wait"])
    return float(wait + costs["remote"] * kpis["remote"] + costs["other_group"] * kpis["other_group"])
