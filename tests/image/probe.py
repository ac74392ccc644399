"""What a process may do here, as one JSON object: for each attempt "done", or the name of the error.

No attempt changes the machine where it succeeds: what would is made on what is not there, or undone.
Runs on the machine under test, by its own Python: in the sandbox of a service, and as root outside of it.
Arguments: the process whose memory is wanted, a folder to write to, a file to read and a program to start.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

VICTIM, FOLDER, SECRET, PROGRAM = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, CLONE_NEWUSER, CLONE_NEWNS = 0x4206, 0x10000000, 0x00020000
DELETE_MODULE = {"x86_64": 176, "aarch64": 106}[platform.machine()]


def called(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def address() -> int:
    """Where the victim has its memory, or has it in all likelihood where that cannot be seen."""
    try:
        line = Path(f"/proc/{VICTIM}/maps").read_text().splitlines()[0]
    except OSError:
        return id(LIBC)
    return int(line.split("-")[0], 16)


def memory_file() -> None:
    with Path(f"/proc/{VICTIM}/mem").open("rb", buffering=0) as file:
        file.seek(address())
        file.read(16)


def process_vm_readv() -> None:
    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    buffer = ctypes.create_string_buffer(16)
    local, remote = Vector(ctypes.addressof(buffer), 16), Vector(address(), 16)
    called(LIBC.process_vm_readv(VICTIM, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))


def ptrace() -> None:
    # Neither stops the process nor outlives this one.
    called(LIBC.ptrace(PTRACE_SEIZE, VICTIM, None, None))


def write(path: str) -> None:
    file = Path(path, f"probe-{os.getpid()}")
    file.touch()
    file.unlink()


def write_a_byte() -> None:
    file = Path(FOLDER, f"byte-{os.getpid()}")
    try:
        file.write_bytes(b"x")
    finally:
        file.unlink()


def start(path: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.execv(path, [path])  # noqa: S606 - what is tried
        except OSError as error:
            os._exit(error.errno or 255)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, "")


def start_from_memory() -> None:
    file = os.memfd_create("probe", 0)
    os.write(file, Path(PROGRAM).read_bytes())
    start(f"/proc/self/fd/{file}")


def in_a_child(attempt: Callable[[], None]) -> None:
    """Make an attempt whose success would change this process."""
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, "")


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)


ATTEMPTS: dict[str, Callable[[], object]] = {
    "inet": lambda: socket.socket(socket.AF_INET).close(),
    "inet6": lambda: socket.socket(socket.AF_INET6).close(),
    "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "unix": lambda: socket.socket(socket.AF_UNIX).close(),
    "api socket": lambda: connect("/run/testudo-api/api.sock"),
    "secret of a tenant": lambda: Path(SECRET).read_bytes(),
    "state": lambda: list(Path("/var/lib/testudo").iterdir()),
    "credentials of the API": lambda: list(Path("/run/credentials/testudo-api.service").iterdir()),
    "environment of the API": lambda: Path(f"/proc/{VICTIM}/environ").read_bytes(),
    "memory file": memory_file,
    "process_vm_readv": process_vm_readv,
    "ptrace": lambda: in_a_child(ptrace),
    "signal": lambda: os.kill(VICTIM, 0),
    "own folder": lambda: write(FOLDER),
    "a byte": write_a_byte,
    **{
        f"write {path}": lambda path=path: write(path)  # type: ignore[misc]
        for path in (
            "/etc",
            "/opt/testudo",
            "/usr/local",
            "/var/lib",
            "/var",
            "/run",
            "/home",
            "/root",
        )
    },
    "module": lambda: called(LIBC.syscall(DELETE_MODULE, b"probe_no_such_module", os.O_NONBLOCK)),
    "unmount": lambda: called(LIBC.umount2(b"/no/such/folder", 0)),
    "user namespace": lambda: in_a_child(lambda: called(LIBC.unshare(CLONE_NEWUSER))),
    "mount namespace": lambda: in_a_child(lambda: called(LIBC.unshare(CLONE_NEWNS))),
    "another user": lambda: in_a_child(lambda: os.setuid(12345)),
    "program of its own": lambda: start("/usr/bin/true"),
    "program of others": lambda: start(PROGRAM),
    "program in memory": start_from_memory,
    "executable memory": lambda: mmap.mmap(
        -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ).close(),
}


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


print(json.dumps({name: outcome(attempt) for name, attempt in ATTEMPTS.items()}))
