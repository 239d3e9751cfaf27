# The function that demo and bench start: one HTTP answer, some state, nothing else.
# Arguments: port, MiB of state.
import http.server
import json
import os
import random
import socketserver
import sys

STATE = random.Random(1).randbytes(int(sys.argv[2]) << 20)


class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        # Asked for by the benchmark alone: what a child of a plain fork() takes to answer.
        forks = self.path == "/fork"
        if forks and (child := os.fork()):
            os.waitpid(child, 0)
            self.close_connection = True
            return
        body = json.dumps({"hello": self.path, "state": len(STATE), "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        if forks:
            os._exit(0)

    def log_message(self, *_):
        pass


# Not HTTPServer, whose bind asks the name service for its own name.
class Server(socketserver.TCPServer):
    allow_reuse_address = True


Server(("0.0.0.0", int(sys.argv[1])), Hello).serve_forever()
