"""Lineage as SVG text, drawn on the server: columns at the left, what is made of them to the right."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from palan.flows.lineage import Lineage, Node

MOST = 150
"""Nodes up to which a drawing can be read."""

_WIDE, _HIGH, _ACROSS, _DOWN = 154, 26, 208, 34  # two columns fit a telephone
_LETTERS = 21


def lineage(found: Lineage) -> str:
    """Return the drawing, or nothing where there is nothing to draw or too much to read. Each column leads to its table."""
    if not found.edges or len(found.nodes) > MOST:
        return ""
    depth = depths(found)
    rows: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for each in found.nodes:
        at = depth[each.id]
        places[each.id] = (at * _ACROSS + 1, rows.get(at, 0) * _DOWN + 1)
        rows[at] = rows.get(at, 0) + 1
    width, height = max(depth.values()) * _ACROSS + _WIDE + 2, max(rows.values()) * _DOWN
    lines = "".join(_line(places[source], places[made]) for source, made in found.edges if source in places)
    boxes = "".join(_box(each, *places[each.id]) for each in sorted(found.nodes, key=lambda each: depth[each.id]))
    return f'<svg class="lineage" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="group" aria-label="What is made of what">{lines}{boxes}</svg>'


def depths(found: Lineage) -> dict[str, int]:
    """Return of each node how far it is from what was delivered: the longest way."""
    behind: dict[str, list[str]] = {each.id: [] for each in found.nodes}
    for source, made in found.edges:
        if source in behind and made in behind:
            behind[made].append(source)
    depth: dict[str, int] = {}
    for id in behind:
        way, on = [id], {id}
        while way:
            here = way[-1]
            open_ = [each for each in behind[here] if each not in depth and each not in on]
            if open_:
                way.append(open_[0])
                on.add(open_[0])
            else:
                depth[here] = 1 + max((depth.get(each, -1) for each in behind[here]), default=-1)
                on.discard(way.pop())
    return depth


def _line(source: tuple[int, int], made: tuple[int, int]) -> str:
    x, y, to_x, to_y = source[0] + _WIDE, source[1] + _HIGH / 2, made[0], made[1] + _HIGH / 2
    middle = (x + to_x) / 2
    return f'<path d="M{x} {y:g}C{middle:g} {y:g} {middle:g} {to_y:g} {to_x} {to_y:g}"/>'


def _box(node: Node, x: int, y: int) -> str:
    name = node.name if node.kind != "column" else node.id
    shown = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
    place = f"/data/{quote(node.of, safe='')}" if node.kind == "column" else f"/models/{quote(node.of, safe='')}"
    return (
        f'<a href="{escape(place)}" aria-label="{escape(f"{node.kind} {name}")}"><title>{escape(name)}{escape(f": {node.about}" if node.about else "")}</title>'
        f'<rect class="{node.kind}" x="{x}" y="{y}" width="{_WIDE}" height="{_HIGH}" rx="4"/><text x="{x + 9}" y="{y + 17}">{escape(shown)}</text></a>'
    )
