"""What an answer consists of leaves in one piece: its head and its body are one write to the socket.

uvicorn writes each part as it comes. Every write is a call of the operating system, and wakes the client once more: for
small answers that costs more than making them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 65_536
"""Bytes that wait at most: what is larger goes on at once, so that a slow client still holds up whoever writes."""


class Together(asyncio.Transport):
    """A transport that passes on what is written within one turn of the event loop as one."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._to = transport
        self._waiting: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._pass_on)
        self._waiting.append(bytes(data))
        self._size += len(data)
        if self._size > MOST:
            self._pass_on()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def _pass_on(self) -> None:
        if self._waiting:
            data, self._waiting, self._size = b"".join(self._waiting), [], 0
            self._to.write(data)

    def close(self) -> None:
        self._pass_on()
        self._to.close()

    def write_eof(self) -> None:
        self._pass_on()
        self._to.write_eof()

    def abort(self) -> None:
        self._waiting, self._size = [], 0
        self._to.abort()

    def get_write_buffer_size(self) -> int:
        return self._size + self._to.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._to.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._to.is_closing()

    def can_write_eof(self) -> bool:
        return self._to.can_write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._to.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._to.get_write_buffer_limits()

    def pause_reading(self) -> None:
        self._to.pause_reading()

    def resume_reading(self) -> None:
        self._to.resume_reading()

    def is_reading(self) -> bool:
        return self._to.is_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._to.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._to.get_protocol()


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP over such a transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(Together(cast("asyncio.Transport", transport)))
