# The function whose children are many: it waits in accept(2), so that a connection wakes one of them.
# Arguments: port, MiB of state. "GET /fork/N" makes N children by fork(2), in the namespaces of a
# container, which wait there too, and "GET /end" ends them. The kernel wakes those that wait in turn.
import ctypes
import http.server
import json
import os
import random
import signal
import socketserver
import sys

STATE = random.Random(1).randbytes(int(sys.argv[2]) << 20)
# CLONE_NEWPID | NEWNS | NEWUTS | NEWIPC, SIGCHLD at its end
NAMESPACES = 0x20000000 | 0x20000 | 0x4000000 | 0x8000000 | 17
SYS_CLONE = 56
MS_REC_PRIVATE = 0x4000 | 0x40000
libc = ctypes.CDLL(None)
PARENT = os.getpid()
children = []


def generation():
    try:
        with open("/run/mitosis/generation") as number:
            return number.read().strip()
    except FileNotFoundError:
        return ""


def forked():
    """A child: a namespace of its own has a /proc of its own."""
    if libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None) or libc.mount(
        b"proc", b"/proc", b"proc", 0, None
    ):
        os._exit(1)
    serve()


class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        words = self.path.split("/")
        if words[1] == "fork":
            for _ in range(int(words[2])):
                pid = libc.syscall(SYS_CLONE, NAMESPACES, 0, 0, 0, 0)
                if pid == 0:
                    # Nothing of this request is the child's.
                    os.close(self.connection.detach())
                    forked()
                children.append(pid)
        if words[1] == "end" and os.getpid() == PARENT:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            children.clear()
        answer = {"hello": self.path, "pid": os.getpid(), "generation": generation(), "children": children}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 128


server = Server(("0.0.0.0", int(sys.argv[1])), Hello)


def serve():
    # serve_forever() would wake twice a second to see whether it is to end.
    while True:
        server._handle_request_noblock()


serve()
