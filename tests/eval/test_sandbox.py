"""What passes in the sandbox, and what is kept from passing, from staying and from harming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asr.errors import ConfigError
from asr.eval import sandbox
from asr.eval.sandbox import Limits, Program, passes

RIGHT = "def f(x):\n    return x + 1\n"
TESTS = ("assert f(2) == 3", "assert f(-1) == 0")
KERNEL = sys.platform == "linux" and os.uname().machine == "x86_64"


def outcome(code: str, tests: tuple[str, ...] = TESTS, **program: object) -> bool:
    return passes(Program(code, tests=tests, **program), Limits(cpu_seconds=2, wall_seconds=30))


@pytest.mark.parametrize(
    "code",
    [
        RIGHT,
        "import re, math, heapq, collections, dataclasses, datetime, decimal, random\n" + RIGHT,
        "import sys\nassert sys.stdin.read() == ''\n" + RIGHT,
        "import os\nassert os.listdir('.') == []\n" + RIGHT,
        "import os\nassert not set(os.environ) - {'LC_CTYPE'}\n" + RIGHT,
        "assert __name__ != '__main__'\n" + RIGHT,
        "print('x' * 10**7)\n" + RIGHT,
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass A:\n    x: int\n" + RIGHT,
    ],
)
def test_a_right_solution_passes(code: str) -> None:
    assert outcome(code)


@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    return 3\n",  # passes the first test only
        "def f(x:\n",
        "",
        "raise ValueError\n",
        "import numpy\n" + RIGHT,  # the standard library alone
    ],
)
def test_a_wrong_solution_does_not(code: str) -> None:
    assert not outcome(code)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "def f(x):\n    raise SystemExit(0)",
        "def f(x):\n    import os\n    os._exit(0)",
        "print('ready')\nprint('1.0')\nimport os\nos._exit(0)",
        "import os\nfor d in range(3, 64):\n    try: os.write(d, b'ready\\n' + b'x' * 32)\n"
        "    except OSError: pass\nos._exit(0)",
        "import os\nos._exit = lambda code: None\nos.write = os.read = print\nraise ValueError",
        "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\n"
        "def f(x):\n    return 0",
        "import builtins\nbuiltins.BaseException = builtins.Exception = ()\nraise ValueError",
        "import atexit\natexit.register(print)\nraise KeyboardInterrupt",
    ],
)
def test_leaving_early_or_claiming_success_does_not_pass(code: str) -> None:
    assert not outcome(code)


@pytest.mark.parametrize(
    "code",
    [
        "len = lambda x: 3\ndef f(x): return []",
        "import builtins\nbuiltins.len = lambda x: 3\ndef f(x): return []",
        "__builtins__ = {'len': lambda x: 3}\ndef f(x): return []",
        "import builtins\nbuiltins.__dict__['len'] = lambda x: 3\ndef f(x): return []",
    ],
)
def test_builtins_are_put_back_before_the_tests(code: str) -> None:
    assert not outcome(code, ("assert len(f(2)) == 3",))
    assert outcome("def f(x): return [1, 2, 3]", ("assert len(f(2)) == 3",))


def test_a_builtin_that_is_the_task_may_be_defined() -> None:
    code, tests = "def sum(x):\n    return 7\n", ("assert sum([1]) == 7",)
    assert not outcome(code, tests)
    assert outcome(code, tests, redefined=("sum",))


def test_setup_runs_between_the_solution_and_the_tests() -> None:
    code = "class Node:\n    def __init__(self, v): self.v = v\ndef f(n): return n.v\n"
    assert outcome(code, ("assert f(root) == 5",), setup="root = Node(5)")
    assert not outcome("root = 5\n" + RIGHT, ("assert f(root) == 6",), setup="root = 1")


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "try:\n    while True: pass\nexcept BaseException: pass",
        "x = []\nwhile True: x.append(' ' * 10**6)",
        "x = bytearray(1 << 33)\n" + RIGHT,
        "def g(): g()\ng()",
    ],
)
def test_time_and_memory_end(code: str) -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=30)
    assert not passes(Program(code, tests=TESTS), limits)


def test_waiting_ends() -> None:
    limits = Limits(cpu_seconds=5, wall_seconds=3)
    assert not passes(Program("import time\ntime.sleep(600)\n" + RIGHT, tests=TESTS), limits)


DOORS = {
    "fork": "import os\nos.fork()",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: break\n1/0",
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "system": "import os\nassert os.system('true') == 0",
    "socket": "import socket\nsocket.socket()",
    "kill": "import os\nos.kill(os.getppid(), 0)",
    "write": "open('new', 'w').write('x')",
    "remove": "import os\nos.remove(PATH)",
    "truncate": "open(PATH, 'r+').truncate()",
    "rename": "import os\nos.rename(PATH, PATH + '.moved')",
    "mkdir": "import os\nos.mkdir(PATH + '.d')",
    "ctypes": "import ctypes\nctypes.CDLL(None)",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))",
}


@pytest.mark.parametrize("door", DOORS)
def test_doors_are_shut(door: str, tmp_path: Path) -> None:
    there = tmp_path / "file.txt"
    there.write_text("kept")
    code = DOORS[door].replace("PATH", repr(str(there)))
    assert not outcome(f"{code}\n{RIGHT}")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert there.read_text() == "kept"
    # the door itself raised, and not the test: caught, the solution passes
    caught = "\n    ".join(code.splitlines())
    assert outcome(f"try:\n    {caught}\nexcept Exception: pass\n{RIGHT}")


@pytest.mark.skipif(not KERNEL, reason="the seccomp filter is for Linux on x86-64")
@pytest.mark.parametrize("door", ["fork", "socket", "kill", "write", "remove", "rename", "mkdir"])
def test_the_kernel_alone_shuts_them_too(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_hook = Path(sandbox._CHILD).read_text().replace("    sys.addaudithook(", "    print(")
    child = tmp_path / "child.py"
    child.write_text(without_hook)
    monkeypatch.setattr(sandbox, "_CHILD", child)
    there = tmp_path / "file.txt"
    there.write_text("kept")
    code = "\n    ".join(DOORS[door].replace("PATH", repr(str(there))).splitlines())
    shut = f"try:\n    {code}\nexcept PermissionError: pass\nelse: raise SystemExit\n{RIGHT}"
    assert outcome(shut)
    assert there.read_text() == "kept" and not (tmp_path / "file.txt.d").exists()


def test_threads_are_refused() -> None:
    assert not outcome("import threading\nthreading.Thread(target=print).start()\n" + RIGHT)


def test_the_folder_it_ran_in_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    assert outcome(f"import os\nassert os.getcwd().startswith({str(tmp_path)!r})\n{RIGHT}")
    assert list(tmp_path.iterdir()) == []


def test_no_process_and_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = subprocess.Popen

    def noted(*args: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(sandbox.subprocess, "Popen", noted)
    descriptors = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    limits = Limits(cpu_seconds=1, wall_seconds=30)
    assert passes(Program(RIGHT, tests=TESTS), limits)
    assert not passes(Program("while True: pass", tests=TESTS), limits)
    assert len(list(descriptors.iterdir())) == before
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
    assert len(started) == 2


def test_a_sandbox_that_does_not_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text("raise SystemExit(7)")
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(ConfigError) as caught:
        outcome(RIGHT)
    assert str(caught.value) == (
        "the sandbox of scorer 'python' does not start: the interpreter ended with status 7; score "
        "the domain with 'exact' or 'loss' instead"
    )


def test_a_refused_part_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    text = Path(sandbox._CHILD).read_text()
    child.write_text(text.replace("if not _filter_calls():", "if True:"))
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.warns(UserWarning, match=r"refuses a part of the sandbox \(seccomp\); the rest"):
        assert outcome(RIGHT)
    with pytest.warns(UserWarning, match="seccomp"):
        assert not outcome("import socket\nsocket.socket()\n" + RIGHT)


def test_another_system_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.os, "name", "nt")
    with pytest.raises(ConfigError, match="scorer 'python' runs code under POSIX limits"):
        passes(Program(RIGHT))
