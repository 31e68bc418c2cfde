"""Locks that a death gives back, and processes found again by their mark."""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
import pytest

from fleet import locks, processes
from fleet.errors import DeadlineExceeded

context = multiprocessing.get_context("spawn")


def hold_until_killed(path: Path, holding: Event) -> None:
    with locks.hold(path, what="machine node-1", timeout=5):
        holding.set()
        signal.pause()


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    """kill -9 releases the machine at once."""
    path = locks.machine_lock_path(tmp_path, "m1")
    holding = context.Event()
    holder = context.Process(target=hold_until_killed, args=(path, holding))
    holder.start()
    assert holding.wait(20)
    assert locks.is_held(path)
    told: list[str] = []
    with (
        pytest.raises(DeadlineExceeded, match="machine node-1"),
        locks.hold(path, what="machine node-1", timeout=0.3, waiting=told.append),
    ):
        pass
    assert ["waiting for machine node-1, which another run holds"] == told
    holder.kill()
    holder.join(10)
    with locks.hold(path, what="machine node-1", timeout=5):
        assert locks.is_held(path)
    assert not locks.is_held(path)


def test_a_lock_is_re_entrant_in_its_process(tmp_path: Path) -> None:
    """A flow that holds a machine may call a flow that takes it, and keeps it afterwards."""
    path = locks.machine_lock_path(tmp_path, "m1")
    with locks.hold(path, what="m", timeout=1):
        with locks.hold(path, what="m", timeout=1):
            pass
        assert locks.is_held(path)
    assert not locks.is_held(path)


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A process started while the lock is held does not inherit it."""
    path = locks.machine_lock_path(tmp_path, "m1")
    with locks.hold(path, what="m", timeout=1):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not locks.is_held(path)
    finally:
        child.communicate(b"\n", timeout=10)


def test_held_runs_are_the_living_ones(tmp_path: Path) -> None:
    """Only runs whose lock is held count as alive."""
    locks.run_lock_path(tmp_path, "dead").touch()
    with locks.hold(locks.run_lock_path(tmp_path, "alive"), what="run", timeout=1):
        assert ["alive"] == locks.held_runs(tmp_path)


STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"


def test_only_marked_processes_are_ended() -> None:
    """A mark finds its process, also one that ignores SIGTERM, and no other."""
    marked_environment = os.environ | {processes.MACHINE_MARK: "m1,m2"}
    stubborn, bystander = (
        subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, env=environment)
        for environment in (marked_environment, dict(os.environ))
    )
    try:
        for child in (stubborn, bystander):
            assert child.stdout is not None
            child.stdout.readline()
        assert [] == processes.marked_with_machine("m")
        found = processes.marked_with_machine("m2")
        assert [stubborn.pid] == [process.pid for process in found]
        assert 1 == processes.end(found, grace=0.5)
        assert -signal.SIGKILL == stubborn.wait(5)
        assert psutil.pid_exists(bystander.pid)
    finally:
        for child in (stubborn, bystander):
            child.kill()
            child.communicate(timeout=10)
