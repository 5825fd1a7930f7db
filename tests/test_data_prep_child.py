"""The killable child: deadline, memory limit, death with its parent, crashes that are named, a new start after each."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from data_prep.child import Child, ChildLost, usable_cores, work_off

ROOT = Path(__file__).parents[1]
PROGRAM = """
import ctypes, os, time
from data_prep.child import serve

def spin():
    ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the GIL: no signal and no other thread of the child gets a turn

def answer(request, say):
    how = request.get("how")
    if how == "spin":
        say(pid=os.getpid())
        spin()
    elif how == "crash":
        os.abort()
    elif how == "raise":
        raise KeyError("a bug")
    elif how == "slow":
        for number in range(4):
            time.sleep(0.4)
            say(number=number)
    elif how == "allocate":
        bytearray(request["num_bytes"])
        say(allocated=True)
    elif how == "print":
        print("noise on standard output")
    say(echo=len(request.get("text", "")), pid=os.getpid())

serve(answer, 1 << 30)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


@pytest.fixture
def child(program):
    with Child(program) as child:
        yield child


def lives(pid):
    """Tell whether a process runs; one that ended and waits for its parent does not."""
    if sys.platform == "linux":
        stat = Path(f"/proc/{pid}/stat")
        state = stat.read_text().rpartition(")")[2].strip() if stat.exists() else ""
    else:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state[:1] not in ("", "Z", "X")


def dies(pid, limit_s=10.0):
    end_s = time.monotonic() + limit_s
    while lives(pid) and time.monotonic() < end_s:
        time.sleep(0.02)
    return not lives(pid)


def pid_of(child):
    """The process that answers now."""
    return list(child.ask({}, 10.0))[-1]["pid"]


def test_answers_come_one_after_the_other_from_one_process(child):
    pid = pid_of(child)
    assert list(child.ask({"text": "x" * 1_000_000}, 10.0)) == [{"echo": 1_000_000, "pid": pid}]
    assert list(child.ask({"how": "print"}, 10.0)) == [{"echo": 0, "pid": pid}]


def test_a_child_that_is_late_is_killed_though_it_holds_the_gil_and_starts_anew(child):
    begin_s, said = time.monotonic(), []
    with pytest.raises(ChildLost) as lost:
        said.extend(child.ask({"how": "spin"}, 1.0))
    assert lost.value.how == "late" and time.monotonic() - begin_s < 30
    begin_s = time.monotonic()
    new = pid_of(child)
    assert lives(new) and time.monotonic() - begin_s < 30


def test_each_message_puts_the_deadline_off(child):
    assert [message.get("number") for message in child.ask({"how": "slow"}, 1.2)] == [0, 1, 2, 3, None]


def test_a_crash_is_named_and_costs_one_request(child):
    before = pid_of(child)
    with pytest.raises(ChildLost) as lost:
        list(child.ask({"how": "crash"}, 10.0))
    assert lost.value.how == "crashed" and pid_of(child) != before


def test_a_child_that_died_between_requests_is_replaced_before_the_next(child):
    before = pid_of(child)
    os.kill(before, signal.SIGKILL)
    assert dies(before) and pid_of(child) != before


def test_an_error_is_named_and_the_child_goes_on(child):
    before = pid_of(child)
    with pytest.raises(ChildLost, match="KeyError: 'a bug'") as lost:
        list(child.ask({"how": "raise"}, 10.0))
    assert lost.value.how == "failed" and pid_of(child) == before


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what is allocated on Linux alone")
def test_memory_is_limited(child):
    assert {"allocated": True} in list(child.ask({"how": "allocate", "num_bytes": 100 << 20}, 10.0))
    with pytest.raises(ChildLost, match="MemoryError"):
        list(child.ask({"how": "allocate", "num_bytes": 2 << 30}, 10.0))


def test_an_answer_that_is_not_listened_to_ends_the_child(child):
    before = pid_of(child)
    messages = child.ask({"how": "slow"}, 10.0)
    assert next(messages) == {"number": 0}
    messages.close()
    assert dies(before) and next(child.ask({"text": "abc"}, 10.0))["echo"] == 3


def test_a_program_that_cannot_start_has_crashed(tmp_path):
    with Child(str(tmp_path / "none.py")) as child, pytest.raises(ChildLost) as lost:
        list(child.ask({}, 10.0))
    assert lost.value.how == "crashed"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux alone")
@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_spins_dies_with_its_parent(program, tmp_path, killer):
    script = f"""
    import sys, threading
    sys.path[:0] = [{str(ROOT)!r}]
    from data_prep.child import Child, work_off
    children = [Child({program!r})]
    for message in work_off([1], children, lambda child, task: child.ask({{"how": "spin"}}, 60.0)):
        print(message["pid"], flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert lives(pid)
        parent.send_signal(killer)
    assert dies(pid)


def test_an_interruption_of_the_whole_group_leaves_the_child_to_its_parent(child):
    pid = pid_of(child)
    os.kill(pid, signal.SIGINT)
    assert pid_of(child) == pid


def test_children_share_the_tasks_and_every_result_comes(program):
    children = [Child(program) for _ in range(2)]

    def work(child, task):
        try:
            yield from ((task, message["echo"]) for message in child.ask(task, 10.0) if "echo" in message)
        except ChildLost as lost:
            yield task, lost.how

    tasks = [{"text": "x" * i} if i % 3 else {"how": "crash"} for i in range(9)]
    results = list(work_off(tasks, children, work))
    assert sorted((len(task.get("text", "")), found) for task, found in results if "text" in task) == [
        (i, i) for i in range(9) if i % 3
    ]
    assert [found for task, found in results if "how" in task] == ["crashed"] * 3


def test_an_error_of_the_work_reaches_the_caller_and_the_caller_can_leave(program):
    def fails(child, task):
        raise RuntimeError(f"task {task}")
        yield

    with pytest.raises(RuntimeError, match="task 0"):
        list(work_off(range(5), [Child(program)], fails))
    pids = []

    def spins(child, task):
        yield from (pids.append(message["pid"]) or task for message in child.ask({"how": "spin"}, 60.0))

    begin_s = time.monotonic()
    results = work_off(range(1000), [Child(program), Child(program)], spins)
    assert next(results) in (0, 1)
    results.close()
    assert time.monotonic() - begin_s < 30 and all(dies(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="affinity and cgroups are of Linux")
@pytest.mark.fast
def test_cores_are_those_that_the_process_may_use(tmp_path):
    """A job of two cores on a machine of many: not a child for each of the machine's."""
    allowed, quota = os.sched_getaffinity(0), tmp_path / "cpu.max"
    assert usable_cores(tmp_path / "none") == len(allowed)
    for text, cores in (("max 100000", len(allowed)), ("150000 100000", min(2, len(allowed))), ("5000 100000", 1)):
        quota.write_text(f"{text}\n")
        assert usable_cores(quota) == cores
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores(tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, allowed)
