"""The system calls left to a decoder: a filter, seccomp(2), for bwrap's `--seccomp` and for `restrict`.

The list is what strace(1) shows of ffmpeg over all formats that are taken. Whatever is not on it
fails with EPERM, or ENOSYS where the C library then tries something older. There is no fork on it, no socket,
no ioctl, no kill and nothing that makes, renames or removes a file.
"""

from __future__ import annotations

import ctypes
import os
import struct

# Numbers of x86-64, from asm/unistd_64.h.
ALLOWED = {
    "read": 0,
    "write": 1,
    "close": 3,
    "fstat": 5,
    "poll": 7,
    "lseek": 8,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "pread64": 17,
    "readv": 19,
    "writev": 20,
    "access": 21,
    "sched_yield": 24,
    "mremap": 25,
    "madvise": 28,
    "dup2": 33,
    "getpid": 39,
    "execve": 59,  # by which bwrap, or a new process of ours, becomes the decoder
    "exit": 60,
    "fcntl": 72,
    "readlink": 89,
    "getrusage": 98,
    "getuid": 102,
    "prctl": 157,
    "arch_prctl": 158,
    "gettid": 186,
    "futex": 202,
    "sched_getaffinity": 204,
    "getdents64": 217,
    "set_tid_address": 218,
    "clock_gettime": 228,
    "clock_nanosleep": 230,
    "exit_group": 231,
    "openat": 257,
    "newfstatat": 262,
    "set_robust_list": 273,
    "prlimit64": 302,
    "getrandom": 318,
    "rseq": 334,
}
CLONE, CLONE_THREAD = 56, 0x10000
CLONE3 = 435

AUDIT_ARCH_X86_64 = 0xC000003E
LOAD, EQUAL, AND_SET, RETURN = 0x20, 0x15, 0x45, 0x06
# Offsets in struct seccomp_data, linux/seccomp.h.
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
ALLOW, KILL = 0x7FFF0000, 0x80000000
# linux/prctl.h
SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVS, MODE_FILTER = 4, 22, 38, 2
NOT_PERMITTED, UNKNOWN = 0x00050001, 0x00050026  # EPERM, ENOSYS


def filter_program() -> bytes:
    """Return the filter as classic BPF, an array of struct sock_filter (linux/filter.h)."""
    allowed = [line for number in ALLOWED.values() for line in ((EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW))]
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        *allowed,
        # clone3 passes its flags in memory, where no filter sees them: glibc then uses clone.
        (EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, UNKNOWN),
        (EQUAL, 0, 2, CLONE),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (AND_SET, 1, 0, CLONE_THREAD),
        (RETURN, 0, 0, NOT_PERMITTED),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in program)


def restrict(program: bytes) -> None:
    """Put the calling process under the filter for good, prctl(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    for arguments in ((SET_NO_NEW_PRIVS, 1, 0, 0, 0), (SET_SECCOMP, MODE_FILTER, header, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def hide() -> None:
    """Keep others of this process's user out of its memory and descriptors, until it runs a program."""
    ctypes.CDLL(None).prctl(SET_DUMPABLE, 0, 0, 0, 0)
