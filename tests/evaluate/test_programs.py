import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from divsel_ray.evaluate import confined, programs
from divsel_ray.evaluate.confined import FILES, NETWORK, PROCESSES
from divsel_ray.evaluate.programs import run_program

ENDS_WELL = {
    "standard library": "import collections, functools, hashlib, itertools, math, re, typing\nassert math.sqrt(4) == 2",
    "numpy": "import numpy as np\nassert np.linalg.det(np.eye(2) @ np.eye(2)) == 1",
    "files of its own": "import os, shutil\nopen('a', 'w').write('x')\nos.mkdir('d')\nos.rename('a', 'd/a')\n"
    "assert open('d/a').read() == 'x'\nshutil.rmtree('d')",
    "a thread that goes on": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
}
FAILS = {
    "an assertion": ("assert 1 == 2, 'no'", "AssertionError: no"),
    "no Python": ("def f(:", "SyntaxError"),
    "a loop": ("while True: pass", "not finished after 1 s"),
    "a sleep": ("import time; time.sleep(60)", "not finished after 1 s"),
    "deep recursion": ("def f(): return f()\nf()", "RecursionError"),
    "much memory": ("x = bytearray(8 << 30)", "MemoryError"),
    "a large file": ("open('f', 'wb').write(b'x' * (1 << 26))", "File too large"),
    "a question": ("input()", "EOFError"),
    "a connection": ("import socket; socket.create_connection(('127.0.0.1', 22))", "not allowed"),
    "a datagram": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "not allowed"),
    "a process": ("import subprocess; subprocess.run(['true'])", "not allowed"),
    "a fork": ("import os; os.fork()", "not allowed"),
    "a shell": ("import os; os.system('true')", "not allowed"),
    "a signal": ("import os; os.kill(os.getppid(), 9)", "not allowed"),
    "an exit": ("import os; os._exit(0)", "ended early with status 0"),
    "a polite exit": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "an exit that says so": ("import os\nprint('passed')\nfor i in range(9):\n  try: os.write(i, b'passed')\n"
                             "  except OSError: pass\nos._exit(0)", "passed"),
    "an exit with a verdict": ("import os\nos.write(3, b'[]\\n' + b'0' * 32)\nos._exit(0)", ""),
}  # fmt: skip


@pytest.mark.parametrize("program", ENDS_WELL.values(), ids=ENDS_WELL)
def test_a_program_passes_that_comes_to_its_end_with(program):
    verdict = run_program(program, 20)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(("program", "reason"), FAILS.values(), ids=FAILS)
def test_a_program_fails_by(program, reason):
    began = time.monotonic()
    verdict = run_program(program, 1 if "not finished" in reason else 20, 1 << 30)

    assert not verdict.passed
    assert reason in verdict.reason
    assert time.monotonic() - began < 20


def test_a_program_sees_nothing_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run_program("import os\nassert not [name for name in os.environ if 'TOKEN' in name]", 20).passed


def test_a_program_cannot_write_elsewhere(tmp_path):
    for program in (f"open({str(tmp_path / 'f')!r}, 'w')", f"import os; os.mkdir({str(tmp_path / 'd')!r})"):
        assert "not allowed" in run_program(program, 20).reason
    assert not list(tmp_path.iterdir())


def _confined(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code after nothing but `isolate`: without Python's hooks."""
    head = f"import sys, os, socket\nfrom pathlib import Path\nsys.path.insert(0, {str(Path(confined.__file__).parent)!r})\n"
    head += "from confined import isolate\nkinds = isolate(Path.cwd())\nprint(*kinds)\nsys.stdout.flush()\n"
    return subprocess.run(
        [sys.executable, "-c", head + code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def namespaces(tmp_path) -> None:
    if _confined("", tmp_path).stdout.split() != [NETWORK, FILES, PROCESSES]:
        pytest.skip("this kernel gives no namespaces to this user")


@pytest.mark.usefixtures("namespaces")
def test_the_kernel_keeps_network_files_and_processes_from_a_program(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    code = f"""
Path("f").write_text("mine")
for attempt in (
    lambda: Path({str(other)!r}).write_text("x"),
    lambda: socket.create_connection(("127.0.0.1", {os.getpid()} % 60000 + 1024), timeout=5),
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=5),
    lambda: Path("/proc/1/environ").read_bytes(),
    lambda: os.kill({os.getpid()}, 0),
):
    try:
        attempt()
    except OSError as error:
        print(type(error).__name__, error.errno)
"""
    lines = _confined(code, own).stdout.splitlines()[1:]
    assert lines == ["OSError 30", "OSError 101", "OSError 101", "FileNotFoundError 2", "ProcessLookupError 3"]
    assert (own / "f").read_text() == "mine"
    assert not other.exists()


@pytest.mark.usefixtures("namespaces")
def test_no_process_of_a_program_outlives_it(tmp_path):
    code = "import time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(3)\n    Path('late').write_text('x')\n"
    _confined(code, tmp_path)
    time.sleep(4)
    assert not (tmp_path / "late").exists()


def test_where_the_kernel_has_no_namespaces_python_refuses_and_the_verdict_says_so(tmp_path, monkeypatch):
    text = Path(confined.__file__).read_text(encoding="utf-8")
    child = tmp_path / "confined.py"
    child.write_text(
        text.replace("if libc.unshare(kinds) == 0:", "if False:").replace("if libc.unshare(kinds | ", "if 1 or (kinds | ")
    )
    monkeypatch.setattr(programs, "_CHILD", child)

    good, bad = run_program("assert True", 20), run_program("import socket; socket.socket()", 20)
    assert good.passed
    assert "not allowed" in bad.reason
    assert good.confined_by == ("python",)
    assert "only Python blocks their sockets" in good.lacking
