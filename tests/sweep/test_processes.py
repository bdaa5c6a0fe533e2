"""Signals are passed on, what is left of a job ends with it, and GPUs and cores are dealt out."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.launch import AT_ONCE, CHILD
from distill.sweep import places
from distill.sweep.processes import Processes

#: Says that it is there, and ends by SIGTERM as a run does.
POLITE = ["sh", "-c", "trap 'echo kept; exit 143' TERM; echo there; while :; do sleep 0.02; done"]
DEAF = ["sh", "-c", "trap '' TERM; echo there; while :; do sleep 0.02; done"]


def once(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    assert true()


def said(log: Path, words: str) -> Callable[[], bool]:
    return lambda: log.exists() and words in log.read_text()


def test_the_first_signal_is_passed_on_as_sigterm_and_nothing_more_is_started(tmp_path: Path):
    processes, codes = Processes(), {}
    log = tmp_path / "log"

    def run() -> None:
        codes["polite"] = processes.run(POLITE, {}, log)
        codes["late"] = processes.run(["touch", str(tmp_path / "late")], {}, log)

    thread = threading.Thread(target=run)
    with processes.listening():
        thread.start()
        once(said(log, "there"))
        os.kill(os.getpid(), signal.SIGINT)
        thread.join()
    assert codes == {"polite": 143, "late": None} and processes.asked == signal.SIGINT
    assert log.read_text() == "there\nkept\n" and not (tmp_path / "late").exists()
    assert signal.getsignal(signal.SIGINT) != processes.ask


def test_a_second_signal_does_not_wait(tmp_path: Path):
    processes, codes = Processes(), []
    thread = threading.Thread(target=lambda: codes.append(processes.run(DEAF, {}, tmp_path / "log")))
    thread.start()
    once(said(tmp_path / "log", "there"))
    processes.ask(signal.SIGTERM)
    # As from a terminal, and from who passes on what that has sent to all.
    processes.ask(signal.SIGTERM)
    time.sleep(2 * AT_ONCE)
    assert not codes
    processes.ask(signal.SIGTERM)
    thread.join()
    assert codes == [-signal.SIGKILL]


def test_what_a_job_started_ends_with_it(tmp_path: Path):
    script = "sleep 60 & echo $!; kill -9 $$"
    assert Processes().run(["sh", "-c", script], {}, tmp_path / "log") == -signal.SIGKILL
    helper = int((tmp_path / "log").read_text())

    def gone() -> bool:
        try:
            return Path(f"/proc/{helper}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    once(gone)


def test_who_is_started_ends_with_who_has_started_it():
    """Even where that one can say nothing any more."""
    waits = "from distill.launch import end_with_parent; end_with_parent(); print('there', flush=True); time.sleep(60)"
    starts = (
        f"import os, subprocess, sys; os.environ[{CHILD!r}] = str(os.getpid()); "
        "subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"
    )
    command = [sys.executable, "-c", starts, f"import time; {waits}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"there\n"
        parent.kill()
        # The end of what is said is that of the child, too.
        assert parent.stdout.read() == b""


def test_who_is_started_ends_where_that_one_has_ended_already():
    waits = "from distill.launch import end_with_parent; end_with_parent(); import time; time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", waits], env=os.environ | {CHILD: "1"}, check=False, timeout=30)
    assert done.returncode == -signal.SIGTERM


def test_output_is_added_and_the_environment_too(tmp_path: Path):
    for place in ("here", "there"):
        assert Processes().run(["sh", "-c", "echo $PLACE; echo $PLACE >&2"], {"PLACE": place}, tmp_path / "log") == 0
    assert (tmp_path / "log").read_text() == "here\nhere\nthere\nthere\n"


@pytest.mark.parametrize(
    ("visible", "at_a_time", "dealt"),
    [
        ("", 3, ["-", "-", "-"]),
        ("0", 2, ["0", "0"]),
        ("2,3", 2, ["2", "3"]),
        ("0,1,2,3,4", 2, ["0,1", "2,3,4"]),
        ("4,5", 3, ["4", "5", "4"]),
        ("0,1", 1, ["-"]),
    ],
)
def test_gpus_are_dealt_out(visible: str, at_a_time: int, dealt: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(places.GPUS, visible)
    assert [each.get(places.GPUS, "-") for each in places.places(at_a_time)] == dealt


def test_cores_are_dealt_out_unless_it_is_said_how_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(places, "cpu_cores", lambda: 8)
    monkeypatch.delenv(places.THREADS, raising=False)
    assert [each[places.THREADS] for each in places.places(3)] == ["2", "2", "2"]
    assert places.places(1) == [{}] and places.places(9)[0][places.THREADS] == "1"
    monkeypatch.setenv(places.THREADS, "5")
    assert places.THREADS not in places.places(3)[0]
