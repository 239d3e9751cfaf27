"""numpy behind an http.server; its BLAS keeps threads of its own: numpy_product.py PORT."""

import http.server
import secrets
import sys

import numpy

STATE = {"secret": secrets.token_hex(8), "count": 0}
LEFT = numpy.arange(300 * 300, dtype=numpy.float64).reshape(300, 300) % 7
RIGHT = numpy.ones((300, 300))


class Function(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        STATE["count"] += 1
        # Each column of the product has the sum of LEFT: exact in doubles, whatever the order.
        work = int((LEFT @ RIGHT).sum()) // 300 - int(LEFT.sum()) + 332833500
        body = f"{STATE['secret']} {STATE['count']} {work}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


LEFT @ RIGHT
http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), Function).serve_forever()
