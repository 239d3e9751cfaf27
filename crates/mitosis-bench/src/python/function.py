# The workloads of `mitosis bench workloads`, each a function behind a TCP port.
# Arguments: port, name. Commands, one in a connection:
# "call" runs the function once and answers with what it took and what came out;
# "fork" makes a child of a plain fork(), which waits for connections as its parent did, while that one waits
# until this connection is closed; "end" ends a process.
import json
import os
import random
import resource
import signal
import socket
import sys
from time import perf_counter_ns as now, process_time_ns as spent

draw = random.Random(1)


def hello():
    return lambda: "hello"


def of_json():
    row = {"name": "n" * 20, "values": list(range(20)), "nested": {"a": 1.5, "b": [True, None]}}
    state = [dict(row, id=i) for i in range(400)]
    return lambda: len(json.dumps(json.loads(json.dumps(state))))


def of_pyaes():
    import pyaes

    key, text = draw.randbytes(32), draw.randbytes(2048)
    return lambda: pyaes.AESModeOfOperationCTR(key).encrypt(text).hex()[:32]


def templating():
    import jinja2

    page = jinja2.Environment(autoescape=True).from_string(
        "<table>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>"
        "{% endfor %}</table>"
    )
    rows = [[draw.random() for _ in range(20)] for _ in range(100)]
    return lambda: len(page.render(rows=rows))


def image():
    import io

    from PIL import Image

    picture = Image.frombytes("RGB", (1024, 768), draw.randbytes(1024 * 768 * 3))

    def call():
        out = io.BytesIO()
        picture.resize((256, 192), Image.Resampling.LANCZOS).save(out, "JPEG")
        return out.tell()

    return call


def compression():
    import bz2
    import zlib

    text = " ".join(str(draw.randrange(5000)) for _ in range(10000)).encode()
    return lambda: [len(zlib.compress(text)), len(bz2.compress(text))]


def pagerank():
    count = 1000
    links = [[draw.randrange(count) for _ in range(8)] for _ in range(count)]

    def call():
        rank = [1 / count] * count
        for _ in range(10):
            new = [0.15 / count] * count
            for page, targets in enumerate(links):
                share = 0.85 * rank[page] / len(targets)
                for target in targets:
                    new[target] += share
            rank = new
        return round(max(rank), 12)

    return call


def linalg():
    import numpy

    left = numpy.random.default_rng(1).random((300, 300))
    right = numpy.arange(300.0)
    return lambda: round(float(numpy.linalg.solve(left @ left.T, right).sum()), 3)


WORK = {
    "hello": hello,
    "json": of_json,
    "pyaes": of_pyaes,
    "templating": templating,
    "image": image,
    "compression": compression,
    "pagerank": pagerank,
    "linalg": linalg,
}


def answer(peer):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cpu, start = spent(), now()
    value = work()
    took = {"ns": now() - start, "cpu_ns": spent() - cpu}
    took["faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    peer.sendall(json.dumps(took | {"value": str(value), "pid": os.getpid()}).encode() + b"\n")


work = WORK[sys.argv[2]]()
# As a function does that has answered before: what is made at the first call is there.
work()
# Children are not waited for.
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True:
    peer, _ = listener.accept()
    with peer:
        peer.settimeout(20)
        try:
            command = peer.recv(16).strip()
            if command == b"call":
                answer(peer)
            elif command == b"end":
                os._exit(0)
            elif command == b"fork":
                if os.fork() == 0:
                    peer.sendall(b"forked\n")
                else:
                    peer.recv(1)
        except OSError:
            pass
