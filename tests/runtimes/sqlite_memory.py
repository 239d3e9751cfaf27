"""SQLite in memory under CPython, its state in a table: sqlite_memory.py PORT."""

import http.server
import secrets
import sqlite3
import sys

DB = sqlite3.connect(":memory:", isolation_level=None)
DB.execute("create table state (secret text, count integer)")
DB.execute("insert into state values (?, 0)", (secrets.token_hex(8),))
DB.execute("create table numbers (i integer primary key, square integer)")
DB.executemany("insert into numbers values (?, ?)", ((i, i * i) for i in range(1000)))


class Function(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        DB.execute("begin immediate")
        DB.execute("update state set count = count + 1")
        DB.execute("commit")
        (secret, count), = DB.execute("select secret, count from state")
        (work,), = DB.execute("select sum(square) from numbers")
        body = f"{secret} {count} {work}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), Function).serve_forever()
