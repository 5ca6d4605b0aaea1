"""The inside of :mod:`asr.eval.sandbox`: run as a script in a bare interpreter, never imported.

Arguments: numbers of three open descriptors: the program (JSON, to read), the token (to read when
all tests have passed), the verdict (to write). Writes ``ready`` and what of the sandbox the system
refused, as one line, before any of the program runs; then, if all tests pass, the token.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import json
import os
import resource
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

# What the audit hook refuses, by the beginnings of the events' names.
_REFUSED = (
    "socket.", "subprocess.", "os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.spawn",
    "os.startfile", "os.system", "pty.", "ctypes.", "gc.get_", "resource.", "signal.pthread_kill",
    "os.chflags", "os.chmod", "os.chown", "os.link", "os.lockf", "os.mkdir", "os.remove",
    "os.removexattr", "os.rename", "os.rmdir", "os.setxattr", "os.symlink", "os.truncate",
    "os.utime", "shutil.", "tempfile.", "mmap.",
)  # fmt: skip
_REFUSED_IMPORTS = ("ctypes", "_ctypes", "resource")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# System calls that the filter refuses, by their numbers on x86-64 (arch/x86/entry/syscalls/
# syscall_64.tbl). Opening a file is looked at by its flags, below.
_CALLS = (
    # sockets: socket connect sendto sendmsg bind listen socketpair accept accept4
    41, 42, 44, 46, 49, 50, 53, 43, 288,
    # processes and threads: clone fork vfork execve execveat clone3 unshare setns setpgid setsid
    56, 57, 58, 59, 322, 435, 272, 308, 109, 112,
    # other processes: kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal ptrace
    # process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise
    62, 200, 234, 129, 297, 424, 101, 310, 311, 438, 312, 440,
    # limits and users: setrlimit prlimit64 setuid setgid setreuid setregid setgroups setresuid
    # setresgid setfsuid setfsgid capset setpriority sched_setscheduler
    160, 302, 105, 106, 113, 114, 116, 117, 119, 122, 123, 126, 141, 144,
    # files: truncate ftruncate fallocate rename mkdir rmdir creat link unlink symlink chmod fchmod
    # chown fchown lchown mknod utime utimes mkdirat mknodat fchownat futimesat unlinkat renameat
    # linkat symlinkat fchmodat utimensat renameat2 openat2 fchmodat2
    76, 77, 285, 82, 83, 84, 85, 86, 87, 88, 90, 91,
    92, 93, 94, 133, 132, 235, 258, 259, 260, 261, 263, 264,
    265, 266, 268, 280, 316, 437, 452,
    # setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr name_to_handle_at
    # open_by_handle_at memfd_create memfd_secret
    188, 189, 190, 197, 198, 199, 303, 304, 319, 447,
    # the system: mount umount2 chroot pivot_root swapon swapoff reboot sethostname setdomainname
    # init_module delete_module finit_module kexec_load kexec_file_load bpf perf_event_open
    # userfaultfd add_key request_key keyctl open_tree move_mount fsopen fsmount mount_setattr acct
    # settimeofday clock_settime adjtimex quotactl syslog
    165, 166, 161, 155, 167, 168, 169, 170, 171,
    175, 176, 313, 246, 320, 321, 298,
    323, 248, 249, 250, 428, 429, 430, 432, 442, 163,
    164, 227, 159, 179, 103,
    # asynchronous and shared: io_uring_setup io_uring_enter io_uring_register io_setup io_submit
    # shmget shmat semget msgget mq_open
    425, 426, 427, 206, 209, 29, 30, 64, 68, 240,
)  # fmt: skip
_OPEN, _OPENAT = 2, 257


def main() -> None:
    """Shut the doors, run the program, send the token if its tests passed."""
    payload, token, verdict = (int(number) for number in sys.argv[1:4])
    with os.fdopen(payload, "rb") as file:
        program = json.load(file)
    refused = _limit(program["cpu_seconds"], program["memory"])
    sys.addaudithook(_audit_hook(_REFUSED, _REFUSED_IMPORTS, _WRITING, PermissionError))
    os.write(verdict, f"ready {', '.join(refused)}".rstrip().encode() + b"\n")
    # Bound now, as the program may replace them; and no exit handlers of the program either way.
    leave, read, write = os._exit, os.read, os.write
    try:
        _run(program)
    except:  # noqa: E722 - SystemExit too: whatever the program raised, it has not passed
        leave(1)
    write(verdict, read(token, 64))
    leave(0)


def _run(program: dict[str, Any]) -> None:
    tests = [
        compile(test, "<test>", "exec", dont_inherit=True)
        for test in (program["setup"], *program["tests"])
    ]
    present = vars(builtins)
    kept = dict(present)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module  # dataclasses and pickle look for it
    names = vars(module)
    names["__builtins__"] = builtins
    exec(compile(program["code"], "<solution>", "exec", dont_inherit=True), names)
    present.update(kept)  # before any builtin is used again
    names["__builtins__"] = builtins
    for name in kept.keys() - set(program["redefined"]) - {"__name__", "__doc__", "__spec__"}:
        names.pop(name, None)
    for test in tests:
        exec(test, names)


def _limit(cpu_seconds: int, memory: int) -> list[str]:
    """Set limits and the filter; return what the system refused."""
    refused = []
    for name, limit in (
        ("RLIMIT_CPU", cpu_seconds),
        ("RLIMIT_AS", memory),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (AttributeError, ValueError, OSError):
            refused.append(name)
    if not _filter_calls():
        refused.append("seccomp")
    return refused


def _filter_calls() -> bool:
    """Install the seccomp filter; False where there is none for this system, or it is refused."""
    if sys.platform != "linux" or os.uname().machine != "x86_64" or sys.maxsize < 1 << 32:
        return False
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: EPERM
    # One instruction: (code, jump if true, jump if false, value). Offsets of struct seccomp_data:
    # number 0, architecture 4, arguments from 16, 8 bytes each.
    steps = [(load, 0, 0, 4), (equal, 1, 0, 0xC000003E), (give, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(at_least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the x32 numbers
    for number in _CALLS:
        steps += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    for number, flags in ((_OPEN, 24), (_OPENAT, 32)):
        steps += [(equal, 0, 4, number), (load, 0, 0, flags), (any_bit, 0, 1, _WRITING)]
        steps += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    steps.append((give, 0, 0, allow))
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(buffer)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    no_new_privileges, set_seccomp, mode_filter = 38, 22, 2
    if prctl(no_new_privileges, 1, 0, 0, 0):
        return False
    return bool(prctl(set_seccomp, mode_filter, ctypes.addressof(header), 0, 0) == 0)


def _audit_hook(
    refused: tuple[str, ...], imports: tuple[str, ...], writing: int, error: type[Exception]
) -> Callable[[str, tuple[Any, ...]], None]:
    # All that the hook uses is bound here: a program that replaces builtins does not reach it.
    text, instance, number = str, isinstance, int

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            if instance(flags, number) and flags & writing:
                raise error("the sandbox refuses to write files")
        elif event == "import":
            if arguments[0] in imports:
                raise error("the sandbox refuses this module")
        elif text.startswith(event, refused):
            raise error("the sandbox refuses this")

    return hook


if __name__ == "__main__":
    for hidden in ("ctypes", "_ctypes", "resource"):
        sys.modules.pop(hidden, None)  # imported again by the program, they meet the hook
    gc.freeze()
    main()
