"""A real S3 server for tests: SeaweedFS from its wheel, with one bucket and one pair of credentials."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ACCESS, SECRET, BUCKET = "palan", "correct-horse-battery", "blobs"


def find_weed() -> str:
    """Where the server's program is, "" when it is not installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}") or ""


def free_ports(count: int) -> list[int]:
    """Ports that are free together with the one 10,000 above: the server wants that for itself."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 500 * 20, 45_000):
        with ExitStack() as stack:
            try:
                for each in (port, port + 10_000):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no ports are free")


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Start it, give its address, and end it."""
    master, volume, filer, s3 = free_ports(4)
    identity = {"name": "palan", "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    ports = {"master": master, "volume": volume, "filer": filer, "s3": s3}
    command = [find_weed(), "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=0"]
    command += [f"-{name}.port={port}" for name, port in ports.items()] + [f"-{name}.port.grpc={port + 10_000}" for name, port in ports.items()]
    command += ["-s3", f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=256"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait(server, f"http://127.0.0.1:{filer}/buckets/{BUCKET}/", 201, "POST")
        _wait(server, f"http://127.0.0.1:{s3}/{BUCKET}", 403, "GET")  # it asks for credentials: it is up
        yield f"http://127.0.0.1:{s3}"
    finally:
        server.send_signal(signal.SIGKILL)  # nothing of it is to be kept
        server.wait()


def _wait(server: subprocess.Popen[bytes], address: str, status: int, method: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method=method), timeout=5) as answer:
                found = answer.status
        except urllib.error.HTTPError as error:
            found = error.code
        except OSError:
            found = 0
        if found == status:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server does not answer at {address}")
