"""Two guests with one kernel and different CPUs. Runs on the second, whose CPU lacks what the first one's
has. Usage: cpus.py MITOSIS PROGRAM ADDRESS ADDRESS, where PROGRAM is a conformance program."""

import sys

from lab import Agent, Node, check, until

MITOSIS, PROGRAM, *ADDRESSES = sys.argv[1:]
PORT = 8000
LACKS = "the parent's CPU has what this node's lacks: protection keys, AVX2, BMI2"


def parent(agent):
    pid = agent.spawn("/tmp/parent.log", PROGRAM, str(PORT))
    said = until("the parent", lambda: agent.read("/tmp/parent.log"))
    check(said == "ready\n", said)
    return pid


def fork(node, seed):
    return node.request(fork={"reference": seed["ref"], "net": "own", "transport": "tcp"})


def main():
    agents = [Agent(address) for address in ADDRESSES]
    nodes, status = [], 1
    try:
        nodes = [Node(agent, MITOSIS, f"node{n}", 7000 + n) for n, agent in enumerate(agents)]
        more, less = nodes
        # What a lesser CPU has to do with is refused by name, and the parent goes on.
        seed = more.prepare(parent(more.agent))
        name, said = fork(less, seed)
        check(name == "error" and LACKS in said["message"], name, said)
        answer = more.agent.ask(ask="check", port=PORT)["said"]
        check(answer == "right", answer)
        print("lesser CPU:", said["message"], flush=True)
        # The other way its registers are in their places.
        seed = less.prepare(parent(less.agent))
        name, forked = fork(more, seed)
        check(name == "forked", name, forked)
        netns = forked["children"][0]["netns"]
        for line in ("check", "change 1", "verify 1"):
            answer = more.agent.ask(ask=line, port=PORT, netns=netns)["said"]
            check(answer == "right", line, answer)
        print("better CPU: right", flush=True)
        print("suite: all passed")
        status = 0
    except AssertionError as error:
        print("suite: FAILED:", error)
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
