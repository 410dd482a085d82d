"""Which gate for which departure, planned in a second without a solver: first fit, then local search."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Any

from apron import (
    BUFFERS,
    REMOTE,
    buffer_within,
    expected_wait,
    plan_of,
    price,
    realised_cost,
    violations,
    widest_buffers,
)
from palan.models.contract import Context, Violation

LOOK_UP = 500  # moves between two looks at the clock and at the best plan


@dataclass
class GatesFast:
    """First fit by arrival, then simulated annealing over moves, swaps and exchanges of the rest of the day.

    The number of moves is fixed, so the same seed gives the same plan, unless the deadline is so close that the
    search has to cool down sooner.
    """

    moves: int = 120_000
    warmest: float = 2.0  # minutes of objective that a move may cost: at the start
    coldest: float = 0.2  # and at the end

    def decide(self, instance: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
        """Return a plan; better ones are published while the search goes on."""
        apron = Apron(instance)
        random = Random(ctx.seed)
        best = apron.assignments()
        best_cost = published = apron.cost
        ctx.incumbent(planned(instance, best), best_cost)
        hurry, allotted, warmth = 0.0, ctx.remaining(), self.warmest
        for move in range(self.moves):
            if move % LOOK_UP == 0:
                if ctx.cancelled():
                    break
                hurry = 1.0 - ctx.remaining() / allotted if allotted < inf else 0.0
                warmth = self.warmest * (self.coldest / self.warmest) ** max(move / self.moves, hurry)
                if apron.cost < best_cost - 1e-9:
                    best, best_cost = apron.assignments(), apron.cost
                if best_cost < 0.99 * published:
                    published = best_cost
                    ctx.incumbent(planned(instance, best), best_cost)
            apron.try_move(random, warmth)
        if apron.cost < best_cost:
            best = apron.assignments()
        return planned(instance, best)

    def objective(self, instance: Mapping[str, Any], plan: Mapping[str, Any]) -> float:
        """Return the plan's expected minutes, priced from the data."""
        return price(instance, plan["assignments"], plan["buffers"])["objective"]

    def check(self, instance: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[Violation]:
        yield from violations(instance, plan)

    def score(self, plan: Mapping[str, Any], outcome: Mapping[str, float | None]) -> float:
        """Return the minutes that the plan cost with the delays that came true, to compare with its objective."""
        return realised_cost(plan, outcome)


def planned(instance: Mapping[str, Any], assignments: Mapping[str, str]) -> dict[str, Any]:
    return plan_of(instance, assignments, widest_buffers(instance, assignments))


class Apron:
    """A plan that changes: flights by gate in the order of arrival, and its cost, kept up to date move by move.

    The remote stand is a last "gate" without order or conflicts.
    """

    def __init__(self, instance: Mapping[str, Any]) -> None:
        flights = sorted(instance["flights"], key=lambda flight: (flight["ready"], flight["scheduled"], flight["id"]))
        costs, gates = instance["costs"], instance["gates"]
        self.names = [flight["id"] for flight in flights]
        self.ready: list[int] = [flight["ready"] for flight in flights]
        self.scheduled: list[int] = [flight["scheduled"] for flight in flights]
        steps = [buffer_within(slack) for slack in range(BUFFERS[-1] + 1)]
        waits = [{buffer: expected_wait(flight["delay_probability"], buffer, costs) for buffer in BUFFERS} for flight in flights]
        self.wait = [[wait[step] for step in steps] for wait in waits]  # by flight and minutes of slack
        self.gate_names = [gate["id"] for gate in gates] + [REMOTE]
        self.remote = len(gates)
        self.place_cost: list[list[float]] = [
            [*(0.0 if gate["group"] == flight["home"] else costs["other_group"] for gate in gates), costs["remote"]]
            for flight in flights
        ]
        self.at: list[list[int]] = [[] for _ in self.gate_names]
        self.where = [self.remote] * len(flights)
        self.cost = 0.0
        for flight in range(len(flights)):
            self._first_fit(flight)

    def assignments(self) -> dict[str, str]:
        return {name: self.gate_names[gate] for name, gate in zip(self.names, self.where, strict=True)}

    def try_move(self, random: Random, warmth: float) -> None:
        """Try one random change; take it when it gains, or loses little: the worse, the less likely (Metropolis)."""
        if not self.names:
            return
        flight, gate = int(random.random() * len(self.names)), int(random.random() * len(self.gate_names))
        if gate == self.where[flight]:
            return
        allowed = warmth * random.expovariate(1.0)  # comparing a loss with an exponential sample is the Metropolis rule
        if random.random() < 0.4 and gate != self.remote and self.where[flight] != self.remote:
            self._exchange_rest(flight, gate, allowed)
        else:
            self._move(flight, gate, allowed)

    def _first_fit(self, flight: int) -> None:
        """Put the next arrival where it costs least now; everything later is still to come."""
        best, best_cost = self.remote, self.place_cost[flight][self.remote]
        for gate in range(self.remote):
            cost = self.place_cost[flight][gate]
            if cost < best_cost and self.at[gate]:
                cost += self._pair(self.at[gate][-1], flight)
            if cost < best_cost:
                best, best_cost = gate, cost
        self.at[best].append(flight)
        self.where[flight] = best
        self.cost += best_cost

    def _pair(self, flight: int, following: int) -> float:
        """Return the expected wait between two flights that follow each other at a gate; infinite if they overlap."""
        slack = self.ready[following] - self.scheduled[flight]
        if slack < 0:
            return inf
        return self.wait[flight][slack] if slack < BUFFERS[-1] else 0.0

    def _removal(self, flight: int) -> float:
        """Return what it costs to take a flight away from its place (a gain is negative)."""
        gate = self.where[flight]
        cost = -self.place_cost[flight][gate]
        if gate == self.remote:
            return cost
        order = self.at[gate]
        position = bisect_left(order, flight)
        before = order[position - 1] if position else None
        after = order[position + 1] if position + 1 < len(order) else None
        if before is not None:
            cost -= self._pair(before, flight)
        if after is not None:
            cost -= self._pair(flight, after)
        if before is not None and after is not None:
            cost += self._pair(before, after)
        return cost

    def _insertion(self, flight: int, gate: int, instead_of: int = -1) -> float:
        """Return what it costs to put a flight at a gate, in place of another one or not; infinite if it does not fit."""
        cost = self.place_cost[flight][gate]
        if gate == self.remote:
            return cost
        order = self.at[gate]
        position = bisect_left(order, flight)
        first, last = position - 1, position
        if first >= 0 and order[first] == instead_of:
            first -= 1
        elif last < len(order) and order[last] == instead_of:
            last += 1
        before = order[first] if first >= 0 else None
        after = order[last] if last < len(order) else None
        if before is not None:
            cost += self._pair(before, flight)
        if after is not None:
            cost += self._pair(flight, after)
        if cost < inf and before is not None and after is not None:
            cost -= self._pair(before, after)
        return cost

    def _move(self, flight: int, gate: int, allowed: float) -> None:
        """Move a flight to another gate; if one flight is in its way there, that one comes here or goes remote."""
        old = self.where[flight]
        change = self._removal(flight)
        plain = self._insertion(flight, gate)
        if plain < inf:
            if change + plain <= allowed:
                self._put(flight, gate)
                self.cost += change + plain
            return
        order = self.at[gate]
        position = bisect_left(order, flight)
        for blocking in order[max(position - 1, 0) : position + 1]:
            inserted = self._insertion(flight, gate, instead_of=blocking)
            if inserted == inf:
                continue
            change += self._removal(blocking) + inserted
            back, remote = self._insertion(blocking, old, instead_of=flight), self.place_cost[blocking][self.remote]
            target = old if back <= remote else self.remote
            change += min(back, remote)
            if change <= allowed:
                self._put(blocking, target)
                self._put(flight, gate)
                self.cost += change
            return

    def _exchange_rest(self, flight: int, gate: int, allowed: float) -> None:
        """Let two gates exchange everything from this flight's arrival on."""
        old = self.where[flight]
        here, there = self.at[old], self.at[gate]
        cut_here, cut_there = bisect_left(here, flight), bisect_left(there, flight)
        head_here, rest_here, head_there, rest_there = here[:cut_here], here[cut_here:], there[:cut_there], there[cut_there:]
        change = 0.0
        if head_here:
            change -= self._pair(head_here[-1], flight)
            change += self._pair(head_here[-1], rest_there[0]) if rest_there else 0.0
        if head_there:
            change += self._pair(head_there[-1], flight)
            change -= self._pair(head_there[-1], rest_there[0]) if rest_there else 0.0
        if change == inf:
            return
        change += sum(self.place_cost[other][gate] - self.place_cost[other][old] for other in rest_here)
        change += sum(self.place_cost[other][old] - self.place_cost[other][gate] for other in rest_there)
        if change > allowed:
            return
        self.at[old], self.at[gate] = head_here + rest_there, head_there + rest_here
        for other in rest_here:
            self.where[other] = gate
        for other in rest_there:
            self.where[other] = old
        self.cost += change

    def _put(self, flight: int, gate: int) -> None:
        order = self.at[self.where[flight]]
        del order[bisect_left(order, flight)]
        order = self.at[gate]
        order.insert(bisect_left(order, flight), flight)
        self.where[flight] = gate

