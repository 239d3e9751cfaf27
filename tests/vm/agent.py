"""Runs commands for a suite on another guest: one JSON request a line, one JSON answer a line."""

import ctypes
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time

import clock

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


def ask(port, line, netns):
    """Says a line to a port of this machine, or of a network namespace, and gives the answer."""
    said = []

    def inside():
        # A thread of its own, which ends there: the others stay where they are.
        if netns:
            with open(netns) as namespace:
                if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(line.encode() + b"\n")
            said.append(clock.line(connection, 30).strip())

    def guarded():
        try:
            inside()
        except OSError as error:
            said.append(f"no answer: {error}")

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    return said[0]


def control(path, request):
    """A request to a node over its control socket (docs/protocol.md), and its reply."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(clock.line(connection, 60))


def first_response(request):
    """Forks a child and says a line to it; what it says, and the microseconds since the fork was asked
    for. Where that failed there is only the reply."""
    since = time.monotonic()
    reply = control(request["socket"], request["control"])
    if not isinstance(reply, dict) or "forked" not in reply:
        return {"reply": reply}
    child = reply["forked"]["children"][0]
    said = ask(request["port"], request["then"], child["netns"])
    return {"reply": reply, "said": said, "us": round((time.monotonic() - since) * 1e6)}


def answer(request):
    if "then" in request:
        return first_response(request)
    if "control" in request:
        return {"reply": control(request["socket"], request["control"])}
    if "ask" in request:
        return {"said": ask(request["port"], request["ask"], request.get("netns"))}
    if "spawn" in request:
        with open(request["log"], "wb") as log:
            process = subprocess.Popen(
                request["spawn"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd="/")
        return {"pid": process.pid}
    pipe = subprocess.PIPE
    with subprocess.Popen(request["run"], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        out, err = clock.finish(process, request.get("input", ""), 120)
    return {"status": process.returncode, "out": out, "err": err}


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            request = json.loads(line)
            try:
                reply = answer(request)
            except (OSError, subprocess.SubprocessError) as error:
                reply = {"status": -1, "out": "", "err": str(error)}
            self.wfile.write(json.dumps(reply).encode() + b"\n")
            if request.get("run") == ["end"]:
                os._exit(0)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server((sys.argv[1], 9000), Handler) as server:
        server.serve_forever()
