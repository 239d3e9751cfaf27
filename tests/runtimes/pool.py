"""A server that lets a pool of processes count and work: pool.py PORT."""

import http.server
import multiprocessing
import secrets
import sys


def work(n):
    with COUNT.get_lock():
        COUNT.value += 1
        return COUNT.value, sum(i * i for i in range(n))


class Function(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        count, product = POOL.apply(work, (1000,))
        body = f"{SECRET} {count} {product}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    SECRET = secrets.token_hex(8)
    COUNT = multiprocessing.Value("q", 0)
    POOL = multiprocessing.Pool(2)
    http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Function).serve_forever()
