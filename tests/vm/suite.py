"""The suite between two kernels. Runs on the last of two guests and has the other do things through its
agent. Usage: suite.py MITOSIS PROGRAMS ADDRESS ADDRESS, where PROGRAMS is a directory of built
conformance programs.

Each program is a parent on one guest, two children on the other, and a grandchild on the first again,
in both directions. What of its kind the parent's kernel has not, a program leaves out and says so. What the
child's kernel has not, the node must refuse, with words that the program's source names. A failed check ends
the suite with status 1; what it started is ended."""

import json
import os
import re
import sys
import threading
import time
import traceback

from lab import Agent, Node, check, until

MITOSIS, PROGRAMS, *ADDRESSES = sys.argv[1:]
SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../conformance")
PORT = 8000

# A line of a program's source, see conform.h.
REFUSES = re.compile(r"/\* Before Linux (\d+)\.(\d+) a node refuses: (.*) \*/")

# A position in a directory is whatever its file system says, and tmpfs says another since 6.6.
OTHER_POSITIONS = {"directory": ((6, 6), "!strcmp(got, rest)")}

# Programs that hold a path, which their grandchild on the same guest cannot have as well.
HOLD_A_PATH = ["listen_unix", "unix_idle"]


class Wrong(Exception):
    pass


def right(who, line, said):
    if said != "right":
        raise Wrong(f"{who}: {line}: {said}")


def flags(name):
    """What `prepare` is to be told: a line `/* Prepared with FLAG ... */` of the program."""
    said = {}
    with open(f"{SOURCES}/{name}.c") as source:
        for line in source:
            if line.startswith("/* Prepared with "):
                words = line.removeprefix("/* Prepared with ").removesuffix(" */\n").split()
                if words[0] in ("--privileged", "--tree"):
                    said[words[0].strip("-")] = True
                elif words[0] == "--content-max":
                    said["content_max"] = int(words[1]) << 20
                else:
                    raise AssertionError(f"{name}: what is {words}?")
    return said


def version(kernel):
    return tuple(int(number) for number in re.match(r"(\d+)\.(\d+)", kernel).groups())


def refusals(name, kernels):
    """What the node of a child must say, any of it, where its kernel lacks what the parent's has."""
    with open(f"{SOURCES}/{name}.c") as source:
        found = [REFUSES.fullmatch(line.strip()) for line in source]
    older = [((int(one[1]), int(one[2])), one[3]) for one in found if one]
    return [words for since, words in older if version(kernels[0]) >= since > version(kernels[1])]


class Child:
    def __init__(self, node, started):
        self.node, self.started = node, started

    def ask(self, line):
        said = self.node.agent.ask(ask=line, port=PORT, netns=self.started["netns"])["said"]
        if not said.startswith("no answer"):
            return said
        rows = [row for row in self.node.request(children=None)[1] if row["pid"] == self.started["pid"]]
        return f"{said}; {[(row['state'], row['exit'], row['reason']) for row in rows[-1:]]}"

    def end(self):
        self.node.request(kill={"pid": self.started["pid"], "signal": 9})


class Course:
    """What a program goes through."""

    def __init__(self, name, first, second):
        self.name, self.first, self.second = name, first, second
        self.children, self.seeds, self.pid, self.without = [], [], None, []
        self.dir = f"/tmp/conform/{name}"

    def begin(self):
        make = f"mkdir -p {self.dir}; cp {PROGRAMS}/{self.name} {self.dir}/program; " \
               f"cd {self.dir}; ./program files"
        for node in (self.first, self.second):
            node.agent.run("sh", "-c", make)
        log = f"{self.dir}/log"
        self.pid = self.first.agent.spawn(log, "sh", "-c", f"cd {self.dir}; exec ./program {PORT}")

        def said():
            lines = self.first.agent.read(log).splitlines(keepends=True)
            whole = lines and lines[-1].endswith("\n") and not lines[-1].startswith("without ")
            return lines if whole else None

        *left_out, last = until("the parent", said)
        if last != "ready\n":
            raise Wrong(f"no parent: {''.join(left_out)}{last}")
        self.without = [line.removeprefix("without ").strip() for line in left_out]

    def prepare(self, node, pid):
        name, seed = node.request(prepare={"pid": pid, **flags(self.name)})
        if name != "prepared":
            raise Wrong(f"prepare: {seed}")
        self.seeds.append((node, seed["seed"]))
        return seed

    def fork(self, node, seed):
        name, forked = node.request(fork={"reference": seed["ref"], "net": "own", "transport": "tcp"})
        if name != "forked":
            raise Wrong(f"fork: {forked}")
        child = Child(node, forked["children"][0])
        self.children.append(child)
        return child

    def ask_parent(self, when):
        said = self.first.agent.ask(ask="check", port=PORT)["said"]
        right(f"parent {when}", "check", said)

    def run(self):
        self.begin()
        self.ask_parent("alone")
        seed = self.prepare(self.first, self.pid)
        self.ask_parent("after prepare")
        children = [self.fork(self.second, seed) for _ in range(2)]
        for at, line in ((0, "check"), (1, "check"), (0, "change 1"), (1, "check"), (1, "change 2"),
                         (0, "verify 1"), (1, "verify 2")):
            right(f"child {at + 1}", line, children[at].ask(line))
        self.ask_parent("while children live")
        again = self.prepare(self.second, children[0].started["pid"])
        right("child 1 after prepare", "verify 1", children[0].ask("verify 1"))
        if self.name not in HOLD_A_PATH:
            grandchild = self.fork(self.first, again)
            right("grandchild", "verify 1", grandchild.ask("verify 1"))
        right("child 2", "verify 2", children[1].ask("verify 2"))
        self.ask_parent("at the end")

    def end(self):
        for child in self.children:
            child.end()
        for node, seed in self.seeds:
            node.request(remove_seed={"seed": seed})
        if self.pid is not None:
            self.first.agent.ask(run=["kill", "-9", str(self.pid)])
        for node in (self.first, self.second):
            node.agent.ask(run=["rm", "-rf", self.dir])
            if self.name == "unix_idle":
                node.agent.ask(run=["rm", "-f", "/tmp/conform-idle-path"])


def one_program(name, first, second):
    """What came of it, and what its parent had to leave out."""
    course = Course(name, first, second)
    try:
        course.run()
        return "right", course.without
    except (Wrong, AssertionError) as error:
        return str(error).strip().replace("\n", " "), course.without
    finally:
        course.end()


def conformance(names, first, second, locks, results):
    """The programs one after another; what came of each is added to the results."""
    for name in names:
        since = time.monotonic()
        with locks[name]:
            results[name] = one_program(name, first, second)
        took = time.monotonic() - since
        said, without = results[name]
        said = ", without ".join([said, *without])
        print(f"program {first.name}-{second.name} {name} {took:.1f} s: {said}", flush=True)


def http_server(first, second):
    """CPython's http.server, which knows nothing of this, answers from the other kernel."""
    agent = first.agent
    agent.run("sh", "-c", "mkdir -p /tmp/www; echo hello from a file >/tmp/www/hello")
    second.agent.run("sh", "-c", "mkdir -p /tmp/www; echo hello from a file >/tmp/www/hello")
    # The child has its parent's port, so the servers of both ways need one each.
    port = 8000 + first.port
    pid = agent.spawn(f"/tmp/http-{port}.log", "/usr/bin/python3", "-m", "http.server", str(port),
                      "-d", "/tmp/www")
    get = ["/usr/bin/python3", "-c", "import urllib.request as r; "
           "print(r.urlopen('http://127.0.0.1:%s/hello', timeout=600).read().decode())" % port]
    until("http.server", lambda: agent.ask(run=get)["status"] == 0)
    seed = first.prepare(pid)
    started = second.json("fork", "--detach", "--transport", "tcp", "-", input=seed["ref"])
    child = started["children"][0]
    said = second.agent.run(*get)
    check(said.strip() == "hello from a file", said)
    row = [row for row in second.json("ps") if row["pid"] == child["pid"]][0]
    print(f"http.server {first.name}-{second.name}: descriptor {seed['descriptor_bytes']} bytes, "
          f"first instruction after {child['start_us'] / 1000:.1f} ms, "
          f"{row['pages_fetched'] + row['pages_prefetched']} pages", flush=True)
    second.call("kill", str(child["pid"]))
    first.call("seed", "rm", seed["seed"])
    agent.run("kill", str(pid))
    return {"descriptor_bytes": seed["descriptor_bytes"], "start_us": child["start_us"]}


def without_unix_diag(first, second):
    """Whose peer a unix socket is, a kernel without that module does not tell: refused, by name."""
    first.agent.run("rmmod", "unix_diag")
    course = Course("socketpair_stream", first, second)
    try:
        course.begin()
        name, said = first.request(prepare={"pid": course.pid})
        check(name == "error" and "modprobe unix_diag" in said["message"], name, said)
        course.ask_parent("after it was refused")
    finally:
        course.end()
    print("without unix_diag:", said["message"], flush=True)


def expected(name, result, kernels):
    """Whether that is what must come of a program between two kernels."""
    said, without = result
    must = refusals(name, kernels)
    if said == "right":
        # What it has left out, nobody can refuse.
        return not must or bool(without)
    since, word = OTHER_POSITIONS.get(name, (None, None))
    may = [word] if word and min(map(version, kernels)) < since <= max(map(version, kernels)) else []
    return any(word in said for word in must + may)


class Way:
    """Parents on one node, children on the other; the connections to both guests are its own."""

    def __init__(self, nodes, kernels, names, locks):
        self.name = f"{kernels[0]} to {kernels[1]}"
        self.kernels = kernels
        self.nodes = [node.again() for node in nodes]
        self.names, self.locks, self.error = names, locks, None
        self.results, self.served = {}, None

    def run(self):
        try:
            self.served = http_server(*self.nodes)
            conformance(self.names, *self.nodes, self.locks, self.results)
            check(sorted(self.results) == sorted(self.names), "programs were left out")
        except Exception as error:  # In a thread: it would be nobody's.
            self.error = error
        finally:
            if self.error is None:
                for node in self.nodes:
                    node.agent.release()

    def wrong(self):
        """What came of it that was not expected."""
        wrong = [f"{self.name}: {name}: {result[0]}" for name, result in self.results.items()
                 if not expected(name, result, self.kernels)]
        return wrong + ([f"{self.name}: {self.error}"] if self.error else [])

    def report(self):
        others = {name: said for name, (said, _) in self.results.items() if said != "right"}
        rightly = [name for name in others if expected(name, self.results[name], self.kernels)]
        rights = len(self.results) - len(others)
        print(f"{self.name}: {rights} of {len(self.results)} programs right, {len(rightly)} not, "
              f"as it must be between these kernels, {len(others) - len(rightly)} wrong", flush=True)
        return {"right": rights, "of": len(self.results), "http.server": self.served,
                "cannot be": {name: others[name] for name in rightly},
                "wrong": {name: said for name, said in others.items() if name not in rightly},
                "left out": {name: without for name, (_, without) in self.results.items() if without}}


def main():
    agents = [Agent(address) for address in ADDRESSES]
    nodes, status = [], 1
    since = time.monotonic()
    try:
        for number, agent in enumerate(agents):
            nodes.append(Node(agent, MITOSIS, f"node{number + 1}", 7001 + number))
        kernels = [agent.run("uname", "-r").strip() for agent in agents]
        clocks = [int(agent.run("date", "+%s")) for agent in agents]
        check(kernels[0] != kernels[1], kernels)
        check(abs(clocks[0] - clocks[1]) > 3600, "clocks are to be hours apart:", clocks)
        print("kernels:", *kernels, "clocks apart by", abs(clocks[0] - clocks[1]), "s", flush=True)
        names = sorted(os.listdir(PROGRAMS))
        # Both at once, in opposite order: two programs of one name would want the same paths.
        locks = {name: threading.Lock() for name in names}
        ways = [Way(nodes, kernels, names, locks),
                Way(nodes[::-1], kernels[::-1], names[::-1], locks)]
        threads = [threading.Thread(target=way.run) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report = {"kernels": kernels, "ways": {way.name: way.report() for way in ways}}
        if "socketpair_stream" in names:
            without_unix_diag(*nodes)
        report["seconds"] = round(time.monotonic() - since)
        print("lab-result:", json.dumps(report), flush=True)
        wrong = [one for way in ways for one in way.wrong()]
        check(not wrong, "\n".join(wrong))
        print(f"suite: all passed in {report['seconds']} s")
        status = 0
    except (AssertionError, Wrong) as error:
        print("suite: FAILED:", error, traceback.extract_tb(error.__traceback__)[-1])
        for node in nodes:
            print(f"-- {node.name}:", node.agent.read(f"/tmp/{node.name}.log")[-3000:])
    finally:
        for node in nodes:
            node.stop()
        for agent in agents:
            agent.end()
    sys.stdout.flush()
    sys.exit(status)


main()
