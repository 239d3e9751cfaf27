"""What a child on the seed's own node costs, made in each of three ways: from nothing, as a copy of a
template, as a copy of the shadow. For CPython, and for CPython with more memory.

    unshare --mount --pid --fork --net --mount-proc --kill-child python3 bench/vias.py > bench/results/vias.json

Needs root and target/release/mitosis. Nothing of the machine is changed: all of it is in namespaces."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time

MITOSIS = os.path.abspath("target/release/mitosis")
RUNS = 20
WAYS = ["direct", "template", "shadow"]
PARENT = """
memory = bytearray({mb} << 20)
for at in range(0, len(memory), 4096):
    memory[at] = 1
print('ready', flush=True)
import time
while True:
    time.sleep(3600)
"""


def sh(line):
    subprocess.run(line, shell=True, check=True, stdout=sys.stderr)


def mitosis(*args):
    out = subprocess.run([MITOSIS, *args, "--socket", "/run/mitosis/own.sock"], check=True, stdout=subprocess.PIPE)
    return out.stdout.decode()


def fork(ref, via):
    said = json.loads(mitosis("fork", ref, "--detach", "--net", "own", "--via", via, "-o", "json"))
    child = said["children"][0]
    assert child["via"] == via and "read from" not in child["transport_why"], child
    time.sleep(0.02)
    mitosis("kill", str(child["pid"]))
    time.sleep(0.02)
    return child["start_us"] + child["hooks_us"]


sh("mount -t tmpfs none /run && mount -t tmpfs none /var/lib && ip link set lo up")
subprocess.Popen([MITOSIS, "node", "run", "--name", "own", "--listen", "127.0.0.1:7000"],
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while not os.path.exists("/run/mitosis/own.sock"):
    time.sleep(0.01)
seeds = []
for mb in (0, 16, 100):
    parent = subprocess.Popen(["/usr/bin/python3", "-c", PARENT.format(mb=mb)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE)
    parent.stdout.readline()
    time.sleep(0.2)
    said = json.loads(mitosis("prepare", str(parent.pid), "-o", "json"))
    first = {via: fork(said["ref"], via) for via in WAYS}
    samples = {via: [] for via in WAYS}
    for _ in range(RUNS):
        for via in WAYS:
            samples[via].append(fork(said["ref"], via))
    median = {via: statistics.median(values) for via, values in samples.items()}
    seeds.append({"pages": said["pages_total"], "median": median, "first": first, "samples": samples})
    parent.kill()
    parent.wait()
cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
print(json.dumps({
    "machine": f"{os.cpu_count()} x {cpu}, Linux {platform.release()}",
    "what": "microseconds from the request to the end of the hooks of CPython",
    "runs": RUNS,
    "seeds": seeds,
}))
