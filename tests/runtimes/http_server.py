"""CPython's own http.server: http_server.py PORT."""

import http.server
import secrets
import sys

STATE = {"secret": secrets.token_hex(8), "count": 0}


class Function(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        STATE["count"] += 1
        work = sum(i * i for i in range(1000))
        body = f"{STATE['secret']} {STATE['count']} {work}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Function).serve_forever()
