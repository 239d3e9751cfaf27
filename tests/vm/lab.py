"""What suites over several guests (or machines) have in common: agents, and daemons on their machines."""

import copy
import json
import socket
import time

import clock

# In seconds of the lab's clock.
LIMIT = 90
# An agent ends a command after 120 s itself.
ANSWER = 180


def check(good, *what):
    if not good:
        raise AssertionError(" ".join(str(one) for one in what))


class Agent:
    def __init__(self, address):
        self.address = address
        deadline = clock.now() + LIMIT
        while True:
            try:
                self.socket = socket.create_connection((address, 9000), timeout=20)
                break
            except OSError:
                check(clock.now() < deadline, "no agent at", address)
                time.sleep(0.3)
        self.spawned = []

    def say(self, request):
        self.socket.settimeout(None)
        self.socket.sendall(json.dumps(request).encode() + b"\n")

    def ask(self, **request):
        try:
            self.say(request)
            return json.loads(clock.line(self.socket, ANSWER))
        except (OSError, ValueError) as error:
            # What comes after it would be the answer to this.
            raise AssertionError(f"agent {self.address}: {str(request)[:200]}: {error}") from error

    def spawn(self, log, *argv):
        pid = self.ask(spawn=argv, log=log)["pid"]
        self.spawned.append(pid)
        return pid

    def run(self, *argv, input="", fails=False):
        done = self.ask(run=argv, input=input)
        check((done["status"] != 0) == fails, argv, "->", done)
        return done["err"] if fails else done["out"]

    def read(self, path):
        return self.run("cat", path)

    def release(self):
        """Ends what it has started."""
        for pid in self.spawned:
            self.ask(run=["kill", "-9", str(pid)])

    def end(self):
        """Ends what it has started, and the agent, if that still answers."""
        try:
            self.release()
            # Its answer is waited for: this guest switches itself off next, and what was still on its way
            # would be lost, and the other guest go on for ever.
            self.ask(run=["end"])
        except (AssertionError, OSError, ValueError) as error:
            print("no end of", self.address, error, flush=True)


def hurried(reply, took):
    """Whether a request failed by a time limit of the node's own that has not passed by the lab's clock."""
    said = str(reply.get("error", "") if isinstance(reply, dict) else "")
    limits = {"timed out": 5, "not done in 20 s": 20}
    return any(words in said and took < limit for words, limit in limits.items())


class Node:
    """A daemon on an agent's machine. It is patient, for guests may be slow, or stopped for a while."""

    def __init__(self, agent, mitosis, name, port, *flags, page_timeout="120s"):
        self.agent, self.mitosis, self.name, self.port = agent, mitosis, name, port
        self.at = f"{agent.address}:{port}"
        self.socket = f"/run/mitosis/{name}.sock"
        self.pid = agent.spawn(
            f"/tmp/{name}.log", mitosis, "node", "run", "--name", name, "--listen", self.at,
            "--socket", self.socket, "--page-timeout", page_timeout, *flags)
        until(f"node {name}", lambda: "listens at" in agent.read(f"/tmp/{name}.log"))

    def again(self):
        """The same daemon, over a connection of its own to its machine: for another thread."""
        node = copy.copy(self)
        node.agent = Agent(self.agent.address)
        return node

    def call(self, *argv, **more):
        return self.agent.run(self.mitosis, *argv, "--socket", self.socket, **more)

    def json(self, *argv, **more):
        return json.loads(self.call(*argv, "-o", "json", **more))

    def prepare(self, pid):
        return self.json("prepare", str(pid))

    def request(self, **request):
        """A request over the control socket: quicker than the command line, which under emulation takes
        half a second to start. The reply's name and what it says."""
        name, body = request.popitem()
        request = {name.replace("_", "-"): body} if body is not None else name
        for _ in range(5):
            since = clock.now()
            reply = self.agent.ask(control=request, socket=self.socket)["reply"]
            if name != "fork" or not hurried(reply, clock.now() - since):
                break
            print(f"{self.name}: once more, for this machine was slow: {reply}", flush=True)
        return next(iter(reply.items())) if isinstance(reply, dict) else (reply, None)

    def stop(self):
        self.agent.ask(run=[self.mitosis, "node", "stop", "--socket", self.socket])


def until(what, test):
    deadline = clock.now() + LIMIT
    while True:
        found = test()
        if found:
            return found
        check(clock.now() < deadline, "waited too long for", what)
        time.sleep(0.2)
