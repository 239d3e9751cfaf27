#!/usr/bin/env python3
"""Waits until guests have ended, and keeps the clock by which they and their suites are judged.

patience.py FILE SECONDS PID...

FILE says how long the guests could have been at work: time in which one of them was stopped (SIGSTOP) does
not count, nor that in which a thread of one waited for a CPU (schedstat of proc(5)). So a busy machine makes
guests slow, and none of them late. Exit status 1 when they have not ended within so many of these
seconds, or six times as many of the others."""

import os
import sys
import time

FILE, SECONDS, *PIDS = sys.argv[1:]
EVERY = 0.25


def waited(pid):
    """Seconds for which each of a process's threads has waited for a CPU; None where it has ended,
    and nothing where it is stopped."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            state = stat.read().rsplit(")", 1)[1].split()[0]
        if state in "ZX":
            return None
        found = {}
        for thread in os.listdir(f"/proc/{pid}/task") if state not in "Tt" else []:
            try:
                with open(f"/proc/{pid}/task/{thread}/schedstat") as schedstat:
                    found[pid, thread] = int(schedstat.read().split()[1]) / 1e9
            except OSError:
                pass  # A thread that has ended.
        return found
    except OSError:
        return None


def write(seconds):
    # In one piece, in its place: a guest may have the file open.
    with open(FILE, "r+") as file:
        file.write(f"{seconds:.2f}\n")


def main():
    clock, began = 0.0, time.monotonic()
    last, since = {}, began
    while clock < float(SECONDS) and time.monotonic() - began < 6 * float(SECONDS):
        time.sleep(EVERY)
        guests = [found for found in map(waited, PIDS) if found is not None]
        if not guests:
            return 0
        now = time.monotonic()
        took, since = now - since, now
        if all(guests):
            threads = {thread: spent for found in guests for thread, spent in found.items()}
            lost = max(spent - last.get(thread, spent) for thread, spent in threads.items())
            clock += max(0.0, took - lost)
            last = threads
            write(clock)
    return 1


sys.exit(main())
