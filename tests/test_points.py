"""Points as they are written and as they are kept: nothing is lost or changed on the way."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from palan.runs import points
from palan.runs.points import BUCKET, Block, Names
from palan.stores.tables import stacked

RUN, OTHER = "0" * 25 + "a", "0" * 25 + "b"
ANY = st.floats(allow_nan=True, allow_infinity=True)


def frames(keyset: Names, run: str, rows: list[tuple[int, int, list[float]]]) -> list[bytes]:
    return [keyset.frame, *(keyset.point(run.encode(), step, ns, values) for step, ns, values in rows)]


def read(stream: list[bytes], known: dict[bytes, tuple[str, ...]]) -> tuple[dict[bytes, tuple[str, ...]], dict[tuple[str, bytes], Block], int]:
    tables, others = points.parted(stacked("s", 0, enumerate(stream)).tables)
    assert others == [frame for frame in stream if frame[:1] != points.POINT]
    defined = points.keysets(others)
    return defined, *points.read(tables, known | defined)


@given(st.lists(st.tuples(st.integers(-(2**62), 2**62), st.integers(0, 2**62), st.lists(ANY, min_size=2, max_size=2)), min_size=1, max_size=30))
def test_what_is_written_is_read_packed_and_unpacked_bit_for_bit(rows: list[tuple[int, int, list[float]]]) -> None:
    keyset = Names(("loss", "gap"))
    _, blocks, _ = read(frames(keyset, RUN, rows), {})
    for block in (blocks[RUN, keyset.digest], points.unpack(points.pack(blocks[RUN, keyset.digest]))):
        assert block.names == ("loss", "gap")
        assert block.steps.tolist() == [step for step, _, _ in rows]
        assert block.times.tolist() == [ns for _, ns, _ in rows]
        assert block.values.T.tobytes() == np.array([values for _, _, values in rows]).tobytes()


def test_runs_and_keysets_that_share_a_stream_are_told_apart() -> None:
    one, two = Names(("loss",)), Names(("loss", "gap"))
    stream = [*frames(one, RUN, [(0, 1, [1.0])]), *frames(two, OTHER, [(0, 2, [2.0, 3.0])]), one.point(OTHER.encode(), 1, 3, [4.0]), one.point(RUN.encode(), 1, 4, [5.0])]
    defined, blocks, lost = read(stream, {})
    assert lost == 0 and defined == {one.digest: ("loss",), two.digest: ("loss", "gap")}
    assert {key: block.values.tolist() for key, block in blocks.items()} == {
        (RUN, one.digest): [[1.0, 5.0]],
        (OTHER, one.digest): [[4.0]],
        (OTHER, two.digest): [[2.0], [3.0]],
    }


def test_a_keyset_that_was_defined_before_need_not_be_defined_again_and_one_that_never_was_costs_only_its_points() -> None:
    keyset = Names(("loss",))
    other = Names(("loss", "gap"))
    point = keyset.point(RUN.encode(), 0, 0, [1.0])
    assert read([point], {}) == ({}, {}, 1)
    assert read([point], {other.digest: other.names})[1:] == ({}, 1)
    _, blocks, lost = read([point, point, other.point(RUN.encode(), 0, 0, [1.0, 2.0])], {keyset.digest: ("loss",)})
    assert lost == 1
    assert blocks[RUN, keyset.digest].values.tolist() == [[1.0, 1.0]]


def a_walk(count: int) -> Block:
    random = np.random.default_rng(7)
    return Block(("a", "b"), np.arange(count), np.arange(count) * 1_000_003, random.normal(size=(2, count)).cumsum(axis=1))


def test_a_point_of_a_random_walk_takes_few_bytes() -> None:
    block = a_walk(points.BLOCK)
    assert len(points.pack(block)) / block.values.size < 10


def test_splitting_and_joining_change_nothing() -> None:
    block = a_walk(1000)
    assert points.unpack(points.pack(block)).values.tobytes() == block.values.tobytes()
    pieces = points.split(block, 300)
    assert [len(each) for each in pieces] == [300, 300, 300, 100]
    again = points.joined(pieces)
    assert (again.values == block.values).all()
    assert again.steps.tolist() == block.steps.tolist()
    assert points.unpack(points.pack(block), ["b"]).values.tolist() == [block.values[1].tolist()]


@given(hnp.arrays(np.float64, st.integers(1, 3 * BUCKET), elements=ANY))
def test_extremes_are_those_of_every_bucket(values: np.ndarray) -> None:
    block = Block(("a",), np.arange(len(values)), np.arange(len(values)), values[None, :])
    found = points.unpack_outline(points.pack_outline(points.outline(block)), block.names).extremes[0]
    for number, (least, largest) in enumerate(found):
        known = [value for value in values[number * BUCKET : (number + 1) * BUCKET] if not math.isnan(value)]
        assert (math.isnan(least), math.isnan(largest)) == (not known, not known)
        if known:
            assert (least, largest) == (min(known), max(known))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=12))
def test_the_last_value_is_that_of_the_largest_step_time_and_value(rows: list[tuple[int, int, float]]) -> None:
    steps, times, values = (np.array(column) for column in zip(*rows, strict=True))
    (found,) = points.summaries(Block(("a",), steps, times, values[None, :].astype(float)))
    assert (found.step, found.time, found.value) == max(rows)
    assert (found.least, found.largest, found.count) == (values.min(), values.max(), len(rows))
    msgspec.json.encode(found)
