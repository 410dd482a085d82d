"""A store on a network file system is refused with the reason, and one on a disk of this machine is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from palan.errors import PalanError
from palan.stores.files import FileBlobs
from palan.stores.sqlite import NETWORK, SQLiteRecords, mounted

SOURCES = Path(__file__).resolve().parent.parent / "src"
SFTP = next((path for path in map(Path, ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")) if path.exists()), None)

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 27 0:40 / /home rw,relatime shared:3 master:2 - nfs4 filer:/home rw,vers=4.2
41 40 0:41 / /home/fast rw,relatime - xfs /dev/vdb rw
42 27 0:42 / /mnt/my\040share rw - cifs //filer/share rw
43 27 0:43 / /mnt/c rw - 9p drvfs rw
44 27 0:44 / /data rw - ext4 /dev/vdc rw
45 44 0:45 / /data rw - fuse.sshfs me@far:/data rw
46 27 0:46 /sub /srv rw - btrfs /dev/vdd rw
47 27 0:47 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw,lowerdir=/a
48 27 0:48 / /tmp rw - tmpfs tmpfs rw
49 27 0:49 / /lustre rw - lustre mgs@tcp:/scratch rw
"""


@pytest.mark.parametrize(
    ("folder", "kind", "place"),
    [
        ("/work/.palan", "ext4", "/"),
        ("/", "ext4", "/"),
        ("/home", "nfs4", "/home"),
        ("/home/me/project/.palan", "nfs4", "/home"),
        ("/home/fast/project/.palan", "xfs", "/home/fast"),
        ("/homework/.palan", "ext4", "/"),
        ("/mnt/my share/p", "cifs", "/mnt/my share"),
        ("/mnt/c/Users/me", "9p", "/mnt/c"),
        ("/data/p", "fuse.sshfs", "/data"),
        ("/srv/p", "btrfs", "/srv"),
        ("/var/lib/docker/overlay2/x/merged/p", "overlay", "/var/lib/docker/overlay2/x/merged"),
        ("/tmp/p", "tmpfs", "/tmp"),
        ("/lustre/me", "lustre", "/lustre"),
    ],
)
def test_the_file_system_of_a_folder_is_the_innermost_and_the_latest_one(folder: str, kind: str, place: str) -> None:
    assert mounted(MOUNTS, folder) == (kind, place)
    assert (kind in NETWORK) == (kind in ("nfs4", "cifs", "9p", "fuse.sshfs", "lustre"))


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="only Linux tells of its mounts")
def test_the_folders_of_this_machine_are_taken(tmp_path: Path) -> None:
    for folder in {tmp_path, Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path}:
        place = folder / f"palan-{os.getpid()}"
        try:
            SQLiteRecords(place / "palan.db").close()
        finally:
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Path]:
    """A folder that is reached through sshfs: the real one, with the server at the other end of a pipe instead of a network."""
    if os.getuid() != 0 or not Path("/dev/fuse").exists() or not shutil.which("sshfs") or SFTP is None:
        pytest.skip("needs root, /dev/fuse, sshfs and sftp-server: apt-get install sshfs openssh-sftp-server")
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    here, there = tmp_path / "near", tmp_path / "far"
    read, answer = os.pipe()
    ask, write = os.pipe()
    with subprocess.Popen([SFTP], stdin=ask, stdout=answer) as server:
        with subprocess.Popen(["sshfs", "-f", "-o", "passive", f"far:{there}", here], stdin=read, stdout=write, stderr=subprocess.PIPE) as mount:
            for end in (read, answer, ask, write):
                os.close(end)
            while not os.path.ismount(here):
                if mount.poll() is not None:
                    server.kill()
                    pytest.skip(f"sshfs may not mount here: {mount.stderr.read() if mount.stderr else b''!r}")
                time.sleep(0.02)
            yield here
            subprocess.run(["umount", here], check=True)
        server.kill()


def test_a_project_on_sshfs_is_refused_until_its_store_is_elsewhere(far: Path, tmp_path: Path) -> None:
    def palan(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "palan.cli", "--project", str(far), *words], env={**os.environ, "PYTHONPATH": str(SOURCES), **environment}, capture_output=True, text=True, check=False)

    (far / "palan.toml").write_text('[project]\nname = "far"\n', encoding="utf-8")
    for words in (["status"], ["log"], ["ingest"], ["runs"]):
        refused = palan(*words)
        assert refused.returncode == 2 and f"is on a network file system (fuse.sshfs, mounted at {far})" in refused.stderr, refused.stderr
        assert 'hint: in palan.toml: [project] store = "/a/folder/of/this/machine", or "postgresql://' in refused.stderr
    assert not (far / ".palan").exists()
    (far / "palan.toml").write_text(f'[project]\nname = "far"\nstore = "{tmp_path}/store"\n', encoding="utf-8")
    assert palan("status").returncode == 0 and (tmp_path / "store" / "palan.db").exists()


def test_blobs_may_be_there(far: Path) -> None:
    """With the records on PostgreSQL: a blob is whole under its name, or not there."""
    blobs = FileBlobs(far / "blobs")
    key = blobs.put(b"x" * 3_000_000)
    assert blobs.put(b"x" * 3_000_000) == key and len(blobs.get(key)) == 3_000_000 and list(blobs.names()) == [key]


def test_the_refusal_is_an_error_of_the_store(far: Path) -> None:
    with pytest.raises(PalanError, match="network file system"):
        SQLiteRecords(far / "deep" / "down" / "palan.db")
    assert list(far.iterdir()) == []
