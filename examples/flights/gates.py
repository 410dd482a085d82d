"""Which gate for which departure, planned for the whole day: a program that HiGHS solves."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

import highspy
import numpy as np

from apron import BUFFERS, REMOTE, expected_wait, plan_of, realised_cost, violations, widest_buffers
from gates_fast import Apron
from palan.models.contract import Violation

Choice = tuple[int, str, int, float]


@dataclass
class Gates:
    """One yes or no for each flight x terminal x buffer, and one for the remote stand.

    All gates of a terminal are alike, so the program never names one: it follows how many are free, as a flow through
    the day, so that at no moment a terminal holds more aircraft, their buffers included, than it has gates. Intervals that overlap at most k deep can be dealt out to k gates
    (interval graphs are perfect), which `interpret` does. Naming the gates instead would give the solver the same plan
    in as many disguises as there are ways to number them.
    """

    relative_gap: float = 1e-4

    def formulate(self, instance: Mapping[str, Any]) -> highspy.Highs:
        """Minimise bus rides, walks from another terminal and expected waiting, in minutes."""
        columns = list(choices(instance))
        flights, capacity = instance["flights"], gate_counts(instance)
        moments = sorted({flight["ready"] for flight in flights}) or [0]
        first_row = {group: len(flights) + position * len(moments) for position, group in enumerate(capacity)}
        rows = len(flights) + len(capacity) * len(moments)
        right = np.zeros(rows)
        right[: len(flights)] = 1.0
        for group, size in capacity.items():
            right[first_row[group]] = size  # in the morning every gate is free

        # One row for each terminal and moment says where its free gates go: taken by arrivals now, or free until the
        # next moment; a departure, its buffer over, gives one back. Each column has three entries at most, where
        # counting the aircraft present at every moment would need forty.
        begins: list[int] = []
        index: list[int] = []
        value: list[float] = []
        costs: list[float] = []
        for flight, group, buffer, cost in columns:
            begins.append(len(index))
            costs.append(cost)
            index.append(flight)
            value.append(1.0)
            if group == REMOTE:
                continue
            index.append(first_row[group] + bisect_left(moments, flights[flight]["ready"]))
            value.append(1.0)
            back = bisect_left(moments, flights[flight]["scheduled"] + buffer)
            if back < len(moments):
                index.append(first_row[group] + back)
                value.append(-1.0)
        for group in capacity:
            for moment in range(len(moments)):
                begins.append(len(index))
                costs.append(0.0)
                index.append(first_row[group] + moment)
                value.append(1.0)
                if moment + 1 < len(moments):
                    index.append(first_row[group] + moment + 1)
                    value.append(-1.0)

        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = len(costs), rows
        program.col_cost_, program.col_lower_ = np.array(costs), np.zeros(len(costs))
        program.col_upper_ = np.array([1.0] * len(columns) + [float(size) for size in capacity.values() for _ in moments])
        program.row_lower_ = program.row_upper_ = right
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_ = np.array([*begins, len(index)])
        program.a_matrix_.index_, program.a_matrix_.value_ = np.array(index), np.array(value)
        program.integrality_ = [highspy.HighsVarType.kInteger] * len(columns) + [highspy.HighsVarType.kContinuous] * (len(costs) - len(columns))
        model = highspy.Highs()
        model.setOptionValue("output_flag", False)
        model.setOptionValue("mip_rel_gap", self.relative_gap)
        model.passModel(program)
        model.setSolution(starting_point(instance, columns, program))
        return model

    def interpret(self, instance: Mapping[str, Any], solution: Any) -> dict[str, Any]:
        """Return the plan: the chosen terminals and buffers, dealt out to gates in the order of arrival."""
        values, flights = list(solution.col_value), instance["flights"]
        chosen = [choice for choice, value in zip(choices(instance), values, strict=False) if value > 0.5]
        free: dict[str, list[tuple[float, str]]] = {}
        for gate in instance["gates"]:
            free.setdefault(gate["group"], []).append((float("-inf"), gate["id"]))
        for gates in free.values():
            heapify(gates)
        assignments, buffers = {}, {}
        for index, group, buffer, _ in sorted(chosen, key=lambda choice: (flights[choice[0]]["ready"], choice[0])):
            flight = flights[index]
            if group == REMOTE:
                assignments[flight["id"]] = REMOTE
                continue
            _, gate = heappop(free[group])
            heappush(free[group], (flight["scheduled"] + buffer, gate))
            assignments[flight["id"]], buffers[flight["id"]] = gate, buffer
        return plan_of(instance, assignments, buffers)

    def check(self, instance: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[Violation]:
        yield from violations(instance, plan)

    def score(self, plan: Mapping[str, Any], outcome: Mapping[str, float | None]) -> float:
        """Return the minutes that the plan cost with the delays that came true, to compare with its objective."""
        return realised_cost(plan, outcome)


def starting_point(instance: Mapping[str, Any], columns: Sequence[Choice], program: highspy.HighsLp) -> highspy.HighsSolution:
    """Return the first-fit plan in the program's terms, so that even an early deadline finds a usable plan."""
    places = {choice[:3]: position for position, choice in enumerate(columns)}
    group = {gate["id"]: gate["group"] for gate in instance["gates"]}
    assignments = Apron(instance).assignments()
    buffers = widest_buffers(instance, assignments)
    chosen = np.zeros(len(columns))
    for index, flight in enumerate(instance["flights"]):
        gate = assignments[flight["id"]]
        chosen[places[index, group.get(gate, REMOTE), buffers.get(flight["id"], 0)]] = 1.0
    taken = np.zeros(program.num_row_)
    begins = np.array(program.a_matrix_.start_)
    rows, values = np.array(program.a_matrix_.index_), np.array(program.a_matrix_.value_)
    for position in np.flatnonzero(chosen):
        entries = slice(begins[position], begins[position + 1])
        np.add.at(taken, rows[entries], values[entries])
    balance = (np.array(program.row_lower_) - taken)[len(instance["flights"]) :]
    terminals = len(gate_counts(instance))
    free = balance.reshape(terminals, balance.size // max(terminals, 1)).cumsum(axis=1)
    solution = highspy.HighsSolution()
    solution.col_value = [*chosen, *free.ravel()]
    return solution


def gate_counts(instance: Mapping[str, Any]) -> dict[str, int]:
    return dict(Counter(gate["group"] for gate in instance["gates"]))


def choices(instance: Mapping[str, Any]) -> Iterator[Choice]:
    """Yield the columns of the program in their order: flight index, terminal or remote, buffer, cost in minutes."""
    costs, groups = instance["costs"], list(gate_counts(instance))
    for index, flight in enumerate(instance["flights"]):
        yield index, REMOTE, 0, costs["remote"]
        for group in groups:
            walk = 0.0 if group == flight["home"] else costs["other_group"]
            for buffer in BUFFERS:
                yield index, group, buffer, walk + expected_wait(flight["delay_probability"], buffer, costs)
