"""What is written to a connection arrives whole and in order, however it is put together; and a slow reader holds up the writer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from palan.http.together import MOST, Together

T = TypeVar("T")


class Counting(Together):
    """Counts how many writes reach the socket."""

    passed = 0

    def _pass_on(self) -> None:
        self.passed += bool(self._waiting)
        super()._pass_on()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop of its own, whatever runs in this thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def exchange(pieces: list[bytes], *, turns: bool) -> tuple[bytes, int]:
    """Write these pieces to a real connection, in one turn of the loop or in many; return what arrives, and in how many writes."""
    passed = 0

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.to = Counting(transport)
            self.task = asyncio.get_running_loop().create_task(self.answer())

        async def answer(self) -> None:
            nonlocal passed
            for piece in pieces:
                self.to.write(piece)
                if turns:
                    await asyncio.sleep(0)
            self.to.close()
            passed = self.to.passed

    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    found = await reader.read()
    writer.close()
    server.close()
    return found, passed


@pytest.mark.parametrize("seed", range(5))
def test_every_byte_arrives_in_order(seed: int) -> None:
    chance = random.Random(seed)
    pieces = [chance.randbytes(chance.choice([0, 1, 10, 1000, MOST, MOST + 1, 3 * MOST])) for _ in range(30)]
    for turns in (True, False):
        assert run(exchange(pieces, turns=turns))[0] == b"".join(pieces)


def test_what_is_written_in_one_turn_is_one_write_and_what_is_large_does_not_wait() -> None:
    assert run(exchange([b"head", b"body"], turns=False)) == (b"headbody", 1)
    assert run(exchange([b"head", b"body"], turns=True))[1] == 2
    assert run(exchange([b"x" * MOST, b"y"] * 3, turns=False))[1] == 3


def test_a_reader_that_does_not_read_holds_up_the_writer() -> None:
    async def stalled() -> tuple[bool, int]:
        paused = asyncio.Event()
        sizes: list[int] = []

        class Server(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                to = Together(transport)
                while not paused.is_set() and len(sizes) < 10_000:
                    to.write(b"x" * 10_000)
                    sizes.append(to.get_write_buffer_size())
                to.abort()

            def pause_writing(self) -> None:
                paused.set()

        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        await asyncio.wait_for(paused.wait(), 10)
        writer.close()
        server.close()
        return paused.is_set(), max(sizes)

    held, most = run(stalled())
    assert held and most < 8 << 20
