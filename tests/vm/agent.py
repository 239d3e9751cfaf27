"""Runs commands for the suite on another guest: one JSON request a line, one JSON answer a line."""

import json
import os
import socketserver
import subprocess
import sys


def answer(request):
    if "spawn" in request:
        with open(request["log"], "wb") as log:
            process = subprocess.Popen(
                request["spawn"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd="/")
        return {"pid": process.pid}
    done = subprocess.run(
        request["run"], input=request.get("input", ""), capture_output=True, text=True,
        timeout=request.get("timeout", 120))
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}


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
