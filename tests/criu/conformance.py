"""The conformance programs under CRIU, where one is on PATH (or named by CRIU): each is dumped, which ends
it, and restored from its images; then it checks itself and changes. Says of each whether CRIU carries it.
This is a comparison: what CRIU does not carry is no failure. See docs/limits.md.

    conformance.py PROGRAMS [NAME...]

PROGRAMS is a directory of built programs (scripts/criu.sh builds them). Everything happens in namespaces
of its own, so pids are free when they are wanted again, and ends with them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

CRIU = os.environ.get("CRIU", "criu")
PORT = 8000
# The options with which it carries most; each is harmless to programs that do not need it.
OPTIONS = ["--tcp-established", "--ext-unix-sk", "--file-locks", "--link-remap", "--force-irmap",
           "--manage-cgroups=ignore", "--skip-in-flight", "--network-lock=skip", "--ghost-limit=32M"]
DUMP_LIMIT = 30
START_LIMIT = 20
NAMESPACES = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net", "--ipc",
              "--uts"]


class Lost(Exception):
    """At which step it was not carried, and why."""


def ask(line):
    try:
        with socket.create_connection(("127.0.0.1", PORT), timeout=10) as connection:
            connection.sendall(line.encode() + b"\n")
            said = connection.makefile("r", errors="replace").read().strip()
    except OSError as error:
        said = f"no answer: {error}"
    if said != "right":
        raise Lost(f"{line}: {said}")


def why(log):
    """The first error that CRIU wrote down."""
    try:
        with open(log, errors="replace") as lines:
            # Where it may not raise its own limit of open files it goes on.
            errors = [line.strip() for line in lines if "Error" in line and "rlimit:" not in line]
    except OSError:
        errors = []
    return errors[0] if errors else "no reason in its log"


def criu(verb, images, *argv):
    log = f"{images}/{verb}.log"
    since = time.monotonic()
    try:
        done = subprocess.run([CRIU, verb, "-D", images, "-o", f"{verb}.log", "-v1", *OPTIONS, *argv],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, timeout=DUMP_LIMIT)
    except subprocess.TimeoutExpired:
        raise Lost(f"{verb}: not within {DUMP_LIMIT} s") from None
    if done.returncode != 0:
        raise Lost(f"{verb}: {why(log)}")
    return time.monotonic() - since


def start(program, work):
    shutil.copy(program, f"{work}/program")
    subprocess.run(["./program", "files"], cwd=work, timeout=START_LIMIT, check=False,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = open(f"{work}/log", "wb")
    process = subprocess.Popen(["./program", str(PORT)], cwd=work, stdin=subprocess.DEVNULL, stdout=log,
                               stderr=log, start_new_session=True)
    log.close()
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        with open(f"{work}/log", errors="replace") as said:
            said = said.read()
        if said.endswith("ready\n"):
            return process
        if process.poll() is not None:
            raise Lost(f"not here: {said.strip()}")
        time.sleep(0.02)
    raise Lost(f"not here: {said.strip() or 'not ready in time'}")


def end_all():
    """Ends every process of this pid namespace but the first and this one."""
    for _ in range(100):
        others = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        others = [pid for pid in others if pid not in (1, os.getpid())]
        if not others:
            return
        for pid in others:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except OSError:
            pass
        time.sleep(0.02)


def one(program, work):
    images = f"{work}.images"
    os.makedirs(work)
    os.makedirs(images)
    took = {}
    try:
        process = start(program, work)
        ask("check")
        took["dump_ms"] = round(criu("dump", images, "-t", str(process.pid)) * 1000, 1)
        process.wait(timeout=10)
        took["restore_ms"] = round(criu("restore", images, "-d") * 1000, 1)
        for line in ("check", "change 1", "verify 1"):
            ask(line)
        return {"carried": True, **took}
    except (Lost, subprocess.TimeoutExpired) as error:
        return {"carried": False, "why": str(error), **took}
    finally:
        end_all()


def inside(programs, names):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    version = subprocess.run([CRIU, "--version"], capture_output=True, text=True, check=True)
    result = {"criu": version.stdout.split("\n")[0].removeprefix("Version: "),
              "kernel": os.uname().release, "programs": {}}
    # Where the programs expect to be, in memory, and of this mount namespace only.
    top = "/tmp/conform"
    os.makedirs(top, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "conform", top], check=True)
    for name in names:
        said = one(f"{programs}/{name}", f"{top}/{name}")
        result["programs"][name] = said
        print(f"criu {name}:", "carried" if said["carried"] else said["why"], file=sys.stderr, flush=True)
        shutil.rmtree(f"{top}/{name}.images", ignore_errors=True)
    able = [said for said in result["programs"].values() if not said.get("why", "").startswith("not here")]
    result["carried"], result["of"] = sum(said["carried"] for said in able), len(able)
    print(json.dumps(result, indent=1))
    print(f"criu {result['criu']}: {result['carried']} of {result['of']} programs carried", file=sys.stderr)


def main():
    programs, *names = sys.argv[1:]
    if shutil.which(CRIU) is None:
        sys.exit("criu: none on PATH, nothing to compare with; docs/limits.md says how to get one")
    if os.environ.get("CRIU_INSIDE") != "1":
        # The first process of the namespace does nothing but to wait, so that it can be left alone.
        os.environ["CRIU_INSIDE"] = "1"
        line = [*NAMESPACES, "sh", "-c", '"$@"; exit $?', "sh", sys.executable, __file__, *sys.argv[1:]]
        os.execvp("unshare", line)
    inside(os.path.abspath(programs), names or sorted(os.listdir(programs)))


main()
