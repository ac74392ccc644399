"""Runs a command under the system call filter of the engine's unit: `python confined.py COMMAND...`."""

from __future__ import annotations

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
# Classic BPF over struct seccomp_data, x86-64, as systemd makes it of MemoryDenyWriteExecute=yes and
# RestrictAddressFamilies=AF_UNIX: (code, jump if true, jump if false, operand).
LOAD, EQUAL, AND_SET, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER, FIRST, THIRD = 0, 16, 32
MMAP, MPROTECT, SOCKET, PKEY_MPROTECT = 9, 10, 41, 329
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # REFUSE: EPERM
FILTER = [
    (LOAD, 0, 0, NUMBER),
    (EQUAL, 3, 0, MMAP),
    (EQUAL, 5, 0, MPROTECT),
    (EQUAL, 4, 0, PKEY_MPROTECT),
    (EQUAL, 5, 8, SOCKET),
    (LOAD, 0, 0, THIRD),  # mmap: writable and executable
    (AND_SET, 0, 6, 4),
    (AND_SET, 4, 5, 2),
    (LOAD, 0, 0, THIRD),  # mprotect: executable
    (AND_SET, 2, 3, 4),
    (LOAD, 0, 0, FIRST),  # socket: anything but AF_UNIX
    (EQUAL, 1, 0, 1),
    (RETURN, 0, 0, REFUSE),
    (RETURN, 0, 0, ALLOW),
]


def confine() -> None:
    """Refuse this process what the filter refuses, for good."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in FILTER))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(FILTER), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    confine()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606
