# A parent that does nothing but look at the clock, and tells over TCP when it could not.
# Argument: port. Commands: "gaps" answers with all gaps since the last answer, as pairs of
# CLOCK_MONOTONIC ns; "fork" does a plain fork and answers with the gap around it.
import json
import os
import socket
import sys
from time import perf_counter_ns as now

GAP_NS = 40_000
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
listener.setblocking(False)
gaps = []


def spin(last, count):
    for _ in range(count):
        t = now()
        if t - last > GAP_NS:
            gaps.append((last, t))
            del gaps[:-1000]
        last = t
    return last


def plain_fork():
    gaps.clear()
    last = spin(now(), 3000)
    gaps.clear()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    spin(last, 3000)
    os.waitpid(pid, 0)
    return gaps


def answer(last):
    try:
        peer, _ = listener.accept()
    except BlockingIOError:
        return False
    # A child whose parent stood still in accept(2) has its gap here.
    spin(last, 1)
    with peer:
        peer.settimeout(5)
        command = peer.recv(16)
        # Nothing comes from whoever only looks whether somebody listens.
        if command:
            found = plain_fork() if command.startswith(b"fork") else gaps
            peer.sendall(json.dumps(found).encode())
    gaps.clear()
    return True


last = now()
while True:
    last = spin(last, 2000)
    if answer(last):
        last = now()
