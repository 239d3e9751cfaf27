"""The lab's clock: seconds by which those who wait for guests judge. Where guests run under an emulator, it
is the one that scripts/vm/patience.py keeps on their host, and goes only as fast as the guests get on:
guests on a busy machine are slow, and those that are stopped for a while do not notice. Elsewhere it is
the time."""

import os
import time
from subprocess import TimeoutExpired

FILE = os.environ.get("LAB_CLOCK")
# So often somebody who waits for bytes looks at the clock.
LOOK = 2


def now():
    if FILE is None:
        return time.monotonic()
    while True:
        with open(FILE) as file:
            try:
                return float(file.read())
            except ValueError:
                # Read while it was being written.
                time.sleep(0.01)


def line(connection, limit):
    """A line from a socket; an OSError where none comes within so many of the clock's seconds, or where
    the connection ends before."""
    deadline, said = now() + limit, b""
    connection.settimeout(LOOK)
    while not said.endswith(b"\n"):
        try:
            more = connection.recv(1 << 20)
        except TimeoutError:
            if now() < deadline:
                continue
            raise TimeoutError(f"nothing said for {limit} s") from None
        if not more:
            raise ConnectionError(f"the connection ended after {said[:200]}")
        said += more
    connection.settimeout(None)
    return said.decode()


def finish(process, text, limit):
    """What a process that is given a text says, its errors too; it is killed after so many seconds."""
    deadline = now() + limit
    while True:
        try:
            return process.communicate(text, timeout=LOOK)
        except TimeoutExpired:
            if now() < deadline:
                # What it was given it has, or will get.
                text = None
                continue
            process.kill()
            process.wait()
            raise
