"""What a time namespace costs a child: two seeds on two nodes, one of which counts its time from
another start, and children of either on a third, in turn.

    unshare --mount --pid --fork --net --mount-proc --kill-child python3 bench/clocks.py > bench/results/clocks.json

Needs root and target/release/mitosis. Nothing of the machine is changed: all of it is in namespaces."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time

MITOSIS = os.path.abspath("target/release/mitosis")
RUNS = 100
PARENT = "import time\nprint('ready', flush=True)\nwhile True: time.sleep(3600)"
AHEAD = ["unshare", "--time", "--monotonic=100000", "--boottime=100000", "--fork", "--kill-child=KILL", "--"]


def sh(line):
    subprocess.run(line, shell=True, check=True, stdout=sys.stderr)


def mitosis(node, *args):
    out = subprocess.run([MITOSIS, *args, "--socket", f"/run/mitosis/{node}.sock"], check=True, stdout=subprocess.PIPE)
    return out.stdout.decode()


def daemon(node, port, before):
    subprocess.Popen(before + [MITOSIS, "node", "run", "--name", node, "--listen", f"127.0.0.1:{port}"],
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not os.path.exists(f"/run/mitosis/{node}.sock"):
        time.sleep(0.01)


def seed(node, before):
    parent = subprocess.Popen(before + ["/usr/bin/python3", "-c", PARENT], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    parent.stdout.readline()
    children = open(f"/proc/{parent.pid}/task/{parent.pid}/children").read().split()
    pid = children[0] if before else str(parent.pid)
    return json.loads(mitosis(node, "prepare", pid, "-o", "json"))["ref"]


sh("mount -t tmpfs none /run && mount -t tmpfs none /var/lib && ip link set lo up")
nodes = {"same": [], "shifted": AHEAD}
daemon("child", 7000, [])
refs = {}
for port, (name, before) in enumerate(nodes.items(), 7001):
    daemon(name, port, before)
    refs[name] = seed(name, before)
samples = {name: {"start_us": [], "build_us": []} for name in nodes}
for run in range(RUNS + 1):
    for name, ref in refs.items():
        said = json.loads(mitosis("child", "fork", ref, "--detach", "--net", "own", "--hooks", "none", "-o", "json"))
        child = said["children"][0]
        time.sleep(0.05)
        mitosis("child", "kill", str(child["pid"]))
        # The first one of each makes the namespace and learns the files.
        if run:
            samples[name]["start_us"].append(child["start_us"])
            samples[name]["build_us"].append(next(p["us"] for p in child["phases"] if p["phase"] == "build"))
cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
median = {name: {key: statistics.median(values) for key, values in one.items()} for name, one in samples.items()}
print(json.dumps({
    "machine": f"{os.cpu_count()} x {cpu}, Linux {platform.release()}",
    "runs": RUNS,
    "median": median,
    "ratio of medians, shifted to same": {
        key: round(median["shifted"][key] / median["same"][key], 3) for key in ("start_us", "build_us")},
    "samples": samples,
}))
