"""Control groups of children, on one guest: groups.py MITOSIS v1|v2, the version that the guest has. Each
child is held to its own limits; one that takes more memory is ended, and `ps` says why; none of the
groups is left. A failed check ends it with status 1; what it started is ended."""

import os
import subprocess
import sys

from lab import Agent, Node, check, until

MITOSIS, VERSION = sys.argv[1:]
HERE = "127.0.0.1"
PORT = 8000
MIB = 96
PIDS = 9
FILES = {"v1": ("memory.limit_in_bytes", "pids.max"), "v2": ("memory.max", "pids.max")}

# For each line either starts processes until it may not, or takes so many MiB. In one address: the child
# has a network namespace of its own.
PARENT = """
import os, socket
server = socket.create_server(("127.0.0.1", 8000))
print("ready", flush=True)
taken = []
while True:
    connection, _ = server.accept()
    word, count = connection.makefile().readline().split()
    started = []
    try:
        for _ in range(int(count)):
            if word == "take":
                taken.append(bytearray(b"x") * (1 << 20))
                continue
            pid = os.fork()
            if pid == 0:
                os.read(os.pipe()[0], 1)
            started.append(pid)
    except OSError:
        pass
    connection.sendall(b"%d\\n" % (len(taken) if word == "take" else len(started)))
    connection.close()
    for pid in started:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
"""


def directories():
    """The groups of children, those of guards that wait included."""
    found = []
    for base, names, _ in os.walk("/sys/fs/cgroup"):
        if os.path.basename(base).startswith("mitosis-limited.") and not base.endswith(".node"):
            found += [os.path.join(base, name) for name in names]
    return found


def limits(pid):
    """What the control groups of a process allow it: bytes, processes."""
    found = []
    with open(f"/proc/{pid}/cgroup") as lines:
        paths = [line.strip().split(":", 2)[1:] for line in lines]
    for name in FILES[VERSION]:
        controller = name.split(".")[0]
        for names, path in paths:
            mount = f"/sys/fs/cgroup/{controller}" if VERSION == "v1" else "/sys/fs/cgroup"
            if names == (controller if VERSION == "v1" else ""):
                with open(f"{mount}{path}/{name}") as file:
                    found.append(int(file.read()))
    return found


def children_are_held(node, agent, seed, via):
    def fork():
        name, said = node.request(fork={"reference": seed["ref"], "net": "own", "via": via})
        check(name == "forked", name, said)
        return said["children"][0]

    def row(child):
        rows = node.request(children=None)[1]
        return [row for row in rows if row["pid"] == child["pid"]][-1]

    def ask(child, line):
        return agent.ask(ask=line, port=PORT, netns=child["netns"])["said"]

    one, two = fork(), fork()
    for child in (one, two):
        check(limits(child["pid"]) == [MIB << 20, PIDS], limits(child["pid"]))
    # Its guard and itself count; its sibling's do not.
    for child in (one, two):
        said = ask(child, "start 20")
        check(said == str(PIDS - 2), "started", said)
    said = ask(one, "take 16")
    check(said == "16", "took", said)
    ask(one, f"take {MIB}")
    row_of_one = until("its end", lambda: row(one) if row(one)["state"] == "ended" else None)
    check("control group was out of memory" in str(row_of_one["reason"]), row_of_one)
    check(row_of_one["exit"] == 137 and row(two)["state"] == "running", row_of_one, row(two))
    said = ask(two, "take 16")
    check(said == "16", "the other took", said)
    node.request(kill={"pid": two["pid"], "signal": 9})
    print(f"groups {VERSION} {via}: {row_of_one['reason']}", flush=True)


def main():
    server = subprocess.Popen([sys.executable, os.path.join(os.path.dirname(__file__), "agent.py"), HERE])
    agent = Agent(HERE)
    node, status = None, 1
    try:
        node = Node(agent, MITOSIS, "limited", 7001, "--child-memory-mib", str(MIB),
                    "--child-pids", str(PIDS))
        pid = agent.spawn("/tmp/parent.log", sys.executable, "-c", PARENT)
        until("the parent", lambda: agent.read("/tmp/parent.log") == "ready\n")
        name, seed = node.request(prepare={"pid": pid})
        check(name == "prepared", seed)
        for via in ("direct", "template"):
            children_are_held(node, agent, seed, via)
        check(agent.ask(ask="start 20", port=PORT)["said"] == "20", "the parent is not held")
        # Those of guards that wait are there until the node's end.
        until("the end of the children's groups", lambda: len(directories()) <= 2 * 8)
        node.stop()
        until("the end of all groups", lambda: not directories())
        print("suite: all passed")
        status = 0
    except AssertionError as error:
        print("suite: FAILED:", error)
        print("-- node:", agent.read("/tmp/limited.log")[-3000:])
    finally:
        if node is not None:
            node.stop()
        agent.end()
        server.wait()
    sys.stdout.flush()
    sys.exit(status)


main()
