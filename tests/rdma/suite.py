"""The RDMA suite. Runs on the last of the guests (or machines) and has the others do things through
their agents. Usage: suite.py MITOSIS PATTERN KEYS PAIRS RESULTS ADDRESS... (the first address is the owner's; one
address alone plays both parts). A failed check ends it with status 1; what it started is ended."""

import json
import os
import statistics
import sys
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../vm"))
import lab  # noqa: E402
from lab import Agent, check, until  # noqa: E402

MITOSIS, PATTERN, KEYS, PAIRS, RESULTS, *ADDRESSES = sys.argv[1:]
# Parts of the names of those tests that are to be run.
ONLY = os.environ.get("MITOSIS_RDMA_TEST", "").split(",")
MIB = 64
PAGES = MIB * 256


class Node(lab.Node):
    def __init__(self, agent, name, port, *flags, **more):
        super().__init__(agent, MITOSIS, name, port, *flags, **more)

    def processes(self):
        pager = self.agent.run("pgrep", "-f", f"{self.name}.pager.sock").split()
        return [str(self.pid), *pager]

    def signal(self, name):
        self.agent.run("kill", f"-{name}", *self.processes())

    def stats(self):
        """State and CPU ticks of daemon and pager."""
        found = []
        for pid in self.processes():
            fields = self.agent.read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
            found.append((fields[0], int(fields[11]) + int(fields[12])))
        return found

    def fork(self, ref, transport, *flags):
        child = self.json("fork", "--detach", "--transport", transport, *flags, "-", input=ref)
        return Child(self, child["children"][0])

    def seed(self, seed):
        rows = [row for row in self.json("seed", "ls") if row["seed"] == seed]
        check(rows, "no seed", seed)
        return rows[0]


class Child:
    def __init__(self, node, started):
        self.node, self.started, self.pid = node, started, started["pid"]
        self.lines = 0

    def row(self):
        return [row for row in self.node.json("ps") if row["pid"] == self.pid][-1]

    def registered(self, pages):
        """Waits until so many pages are registered and its node knows where."""
        try:
            until(f"{pages} registered pages", lambda: self.row()["rdma_reach"] >= pages)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.row()}") from error

    def tell(self, signal):
        """Sends a signal; the line that the child prints then, as words."""
        self.node.call("kill", str(self.pid), "-s", signal)
        lines = until(f"answer of child {self.pid}", self.log)
        self.lines += 1
        return lines[self.lines - 1].split()

    def log(self):
        if self.row()["state"] != "running":
            raise AssertionError(f"child ended: {self.row()}")
        lines = self.node.call("logs", str(self.pid)).splitlines()
        return lines if len(lines) > self.lines else None

    def verify(self):
        """All words are right; microseconds that reading them took."""
        said = self.tell("USR1")
        check(said[:4] == ["checked", str(MIB << 17), "wrong", "0"], "child said", said)
        return float(said[5])

    def touch(self):
        said = self.tell("USR2")
        check(said[-2:] == ["wrong", "0"], "child said", said)
        return [float(one) for one in said[1:-2]]

    def ask(self):
        """Has it verify all words, and does not wait for that."""
        self.node.call("kill", str(self.pid), "-s", "USR1")

    def verified(self):
        """All words were right that it was asked for."""
        lines = until(f"answer of child {self.pid}", self.log)
        self.lines += 1
        said = lines[self.lines - 1].split()
        check(said[:4] == ["checked", str(MIB << 17), "wrong", "0"], "child said", said)

    def end(self):
        self.node.call("kill", str(self.pid))


def parent(agent, name, *more):
    pid = agent.spawn(f"/tmp/{name}.out", PATTERN, str(MIB), *more)
    until("parent", lambda: "ready" in agent.read(f"/tmp/{name}.out"))
    return pid


def reads_go_on_while_the_owner_is_stopped(owner, node, prepared):
    child = node.fork(prepared["ref"], "auto")
    started = child.started
    check(started["transport"] == "rdma", started)
    print("auto chose:", started["transport_why"])
    child.registered(PAGES)
    # Pages of mapped files come over TCP: the code that prints is touched before.
    child.touch()
    before = child.row()
    owner.signal("STOP")
    try:
        stopped = owner.stats()
        check(len(stopped) > 1 and all(state == "T" for state, _ in stopped), stopped)
        child.verify()
        # Longer than the page timeout: the owner's memory answers, so it is there.
        time.sleep(6)
        check(child.row()["state"] == "running", child.row())
        after = owner.stats()
    finally:
        owner.signal("CONT")
    check(after == stopped, "somebody ran at the owner:", stopped, after)
    row = child.row()
    direct = row["pages_rdma"] - before["pages_rdma"]
    check(direct >= PAGES - 600, row)
    print(f"with daemon and pager of the owner stopped: {direct} pages by RDMA, all words right")
    child.end()


def what_is_not_registered_comes_over_tcp(owner, node, pid):
    prepared = owner.prepare(pid)
    child = node.fork(prepared["ref"], "rdma")
    child.registered(16 * 256 - 16)
    child.verify()
    row = child.row()
    fetched = row["pages_fetched"] + row["pages_prefetched"]
    check(0 < row["pages_rdma"] <= 16 * 256 < fetched, row)
    print(f"16 MiB registered of 64: {row['pages_rdma']} of {fetched} pages by RDMA, words right")
    # Another seed gets the room, and the older one falls back.
    second = owner.prepare(pid)
    other = node.fork(second["ref"], "rdma")
    other.registered(16 * 256 - 16)
    check(owner.seed(prepared["seed"])["pages_rdma"] == 0, owner.seed(prepared["seed"]))
    note = until("the older child's note",
                 lambda: "unpinned" in str(child.row()["rdma_note"]) and child.row()["rdma_note"])
    # A READ of deregistered memory has failed, unless the owner was asked before.
    check("remote access error" in note or note.startswith("unpinned"), note)
    print("unpinned for another seed:", note)
    other.verify()
    child.end()
    # Used again, after a rest: pinned again, and now the other one has to give way.
    time.sleep(11)
    again = node.fork(prepared["ref"], "rdma")
    again.registered(16 * 256 - 16)
    check(owner.seed(second["seed"])["pages_rdma"] == 0, owner.seed(second["seed"]))
    again.verify()
    row = again.row()
    check(row["pages_rdma"] > 0, row)
    print(f"pinned again: {row['pages_rdma']} pages by RDMA, words right")
    for one in (other, again):
        one.end()


def descriptors_are_read(owner, node, prepared):
    """With the capability check comes where the descriptor is."""
    took = []
    for _ in range(3):
        child = node.fork(prepared["ref"], "rdma")
        why = child.started["transport_why"]
        check(f"descriptor ({owner.seed(prepared['seed'])['descriptor_bytes']} bytes) read in" in why,
              why)
        took.append(why.split("; descriptor ")[1])
        child.touch()
        child.end()
    print("descriptor:", " | ".join(took))
    # Without being asked for it is not: a small one has come with the answer by then.
    child = node.fork(prepared["ref"], "auto")
    check("descriptor" not in child.started["transport_why"], child.started)
    child.end()
    # Of a seed that is gone there is none.
    gone = owner.prepare(parent(owner.agent, "forgotten"))
    node.fork(gone["ref"], "rdma").end()
    owner.call("seed", "rm", "-", input=gone["ref"])
    said = node.call("fork", "--detach", "--transport", "rdma", "-", input=gone["ref"], fails=True)
    check("refused" in said, said)
    node.fork(prepared["ref"], "rdma").end()


def pinned(agent, pid):
    """KiB of a process that devices have pinned."""
    lines = agent.read(f"/proc/{pid}/status").splitlines()
    return int(next(line for line in lines if line.startswith("VmPin:")).split()[1])


def end_of(agent, pid):
    """Ends a parent and waits until its memory is gone."""
    agent.run("kill", "-9", str(pid))
    maps = ["cat", f"/proc/{pid}/maps"]
    until("the parent's end", lambda: not agent.ask(run=maps)["out"])


def registrations(agent):
    """Memory regions of the machine's devices."""
    words = agent.run("rdma", "resource", "show").split()
    return sum(int(words[n + 1]) for n, word in enumerate(words) if word == "mr")


def a_shadow_registers_what_it_has_for_itself(owner, node):
    agent = owner.agent
    pid = parent(agent, "mortal")
    prepared = owner.prepare(pid)
    child = node.fork(prepared["ref"], "rdma")
    child.registered(PAGES)
    seed = owner.seed(prepared["seed"])
    check(seed["rdma_copied_bytes"] >= MIB << 20 and seed["pages_rdma_shadow"] < 600, seed)
    shared = seed
    child.end()
    owner.call("seed", "rm", "-", input=prepared["ref"])

    prepared = owner.prepare(pid)
    shadow = owner.seed(prepared["seed"])["shadow_pid"]
    end_of(agent, pid)
    check(pinned(agent, shadow) == 0, "pinned by prepare")
    child = node.fork(prepared["ref"], "rdma")
    child.registered(PAGES)
    seed = owner.seed(prepared["seed"])
    check(seed["pages_rdma_shadow"] >= PAGES - 4096, seed)
    check(seed["rdma_copied_bytes"] < MIB << 19, seed)
    check(pinned(agent, shadow) >= seed["pages_rdma_shadow"] * 4, pinned(agent, shadow), seed)
    # Nobody at the owner runs for a read, the shadow least of all.
    child.touch()
    before = child.row()
    owner.signal("STOP")
    agent.run("kill", "-STOP", str(shadow))
    try:
        child.verify()
    finally:
        owner.signal("CONT")
        agent.run("kill", "-CONT", str(shadow))
    row = child.row()
    fetched = [one["pages_fetched"] + one["pages_prefetched"] for one in (before, row)]
    check(row["pages_rdma"] - before["pages_rdma"] >= fetched[1] - fetched[0] > 0, before, row)
    child.end()
    # And its descriptor's.
    left = registrations(agent) - seed["rdma_registrations"] - 1
    owner.call("seed", "rm", "-", input=prepared["ref"])
    until("the end of registrations", lambda: registrations(agent) <= left)
    print(f"in the shadow: {seed['pages_rdma_shadow']} pages of {seed['pages_rdma']} where they are,"
          f" {seed['rdma_copied_bytes'] >> 10} KiB copied, {seed['rdma_registrations']} registrations,"
          f" {seed['rdma_register_us']} us; with its parent alive {shared['rdma_copied_bytes'] >> 10}"
          f" KiB copied, {shared['rdma_register_us']} us")


def an_unpinned_shadow_is_not_pinned(small, node):
    agent = small.agent
    seeds, shadows = [], []
    for name in ("first", "second"):
        pid = parent(agent, name)
        seeds.append(small.prepare(pid))
        shadows.append(small.seed(seeds[-1]["seed"])["shadow_pid"])
        end_of(agent, pid)
    one = node.fork(seeds[0]["ref"], "rdma")
    one.registered(8 * 256)
    check(pinned(agent, shadows[0]) > 0, small.seed(seeds[0]["seed"]))
    other = node.fork(seeds[1]["ref"], "rdma")
    other.registered(8 * 256)
    kib = [pinned(agent, shadow) for shadow in shadows]
    check(kib[0] == 0 < kib[1] <= 16 << 10, kib)
    for child in (one, other):
        child.verify()
        child.end()
    for seed in seeds:
        small.call("seed", "rm", "-", input=seed["ref"])
    print("unpinned: nothing of the first shadow,", kib[1], "KiB of the second")


def a_shadow_that_cannot_be_asked_is_copied(owner, node):
    agent = owner.agent
    cgroup = "/sys/fs/cgroup/frozen"
    pid = parent(agent, "frozen")
    prepared = owner.prepare(pid)
    end_of(agent, pid)
    agent.run("mkdir", cgroup)
    shadow = owner.seed(prepared["seed"])["shadow_pid"]
    agent.run("tee", f"{cgroup}/cgroup.procs", input=str(shadow))
    agent.run("tee", f"{cgroup}/cgroup.freeze", input="1")
    child = node.fork(prepared["ref"], "rdma")
    child.registered(PAGES)
    seed = owner.seed(prepared["seed"])
    check(seed["pages_rdma_shadow"] == 0 and seed["rdma_note"], seed)
    print("in the shadow, which is frozen: nothing:", seed["rdma_note"])
    child.verify()
    child.end()
    agent.run("tee", f"{cgroup}/cgroup.freeze", input="0")
    owner.call("seed", "rm", "-", input=prepared["ref"])
    until("an empty cgroup", lambda: agent.ask(run=["rmdir", cgroup])["status"] == 0)


def a_shadow_registers_and_makes_children(owner, node):
    """The same shadow is visited to register its memory, and takes orders for children of its own."""
    agent = owner.agent
    pid = parent(agent, "mother")
    prepared = owner.prepare(pid)
    shadow = owner.seed(prepared["seed"])["shadow_pid"]
    end_of(agent, pid)

    def here(when):
        child = owner.fork(prepared["ref"], "auto", "--via", "shadow")
        check(child.row()["via"] == "shadow", child.row())
        child.verify()
        child.end()
        print("children of a shadow", when, flush=True)

    here("before it registers")
    far = node.fork(prepared["ref"], "rdma")
    far.registered(PAGES)
    seed = owner.seed(prepared["seed"])
    check(seed["pages_rdma_shadow"] >= PAGES - 4096 and pinned(agent, shadow) > 0, seed)
    here("after it has registered")
    # One that lives meanwhile, whose memory is the shadow's until somebody writes.
    near = owner.fork(prepared["ref"], "auto", "--via", "shadow")
    far.verify()
    row = far.row()
    check(row["pages_rdma"] > 0 and row["rdma_note"] is None, row)
    near.verify()
    for child in (far, near):
        child.end()
    owner.call("seed", "rm", "-", input=prepared["ref"])
    print(f"children of a shadow: {row['pages_rdma']} pages of it by RDMA meanwhile, all words right")


def huge_pages(agent, pid):
    """MiB of a process in transparent pages of 2 MiB."""
    lines = agent.read(f"/proc/{pid}/smaps").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:")) >> 10


def pages_of_2_mib_stay_whole(owner, node):
    """They are registered as such where they are, and read in long stretches."""
    agent = owner.agent
    pid = parent(agent, "huge", "huge")
    had = huge_pages(agent, pid)
    check(had >= MIB - 2, "the parent has", had, "MiB of huge pages")
    prepared = owner.prepare(pid)
    shadow = owner.seed(prepared["seed"])["shadow_pid"]
    end_of(agent, pid)
    child = node.fork(prepared["ref"], "rdma")
    child.registered(PAGES)
    seed = owner.seed(prepared["seed"])
    check(seed["pages_rdma_shadow"] >= had * 256, seed)
    # One for each 16 MiB of address space, however it lies; and what is not huge.
    check(seed["rdma_registrations"] <= MIB // 16 + 12, seed)
    check(huge_pages(agent, shadow) >= had, "split in the shadow:", huge_pages(agent, shadow), had)
    child.verify()
    row = child.row()
    check(row["pages_rdma"] > PAGES // 2 and row["rdma_note"] is None, row)
    # Not one READ for each page.
    check(row["faults"] < PAGES // 16, row)
    child.end()
    owner.call("seed", "rm", "-", input=prepared["ref"])
    print(f"pages of 2 MiB: {had} MiB of them registered whole, {seed['rdma_registrations']} registrations,"
          f" {row['pages_rdma']} pages by RDMA in {row['faults']} faults")


def meminfo(agent, key):
    lines = agent.read("/proc/meminfo").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def pages_that_were_set_aside(owner, node, pinning):
    """Of hugetlb. A child has them as ordinary memory; whether they are copied, or registered where they
    are, they come by RDMA. Where they cannot be pinned, which takes as many again, they are copied."""
    agent = owner.agent
    had = meminfo(agent, "HugePages_Total")
    agent.run("tee", "/proc/sys/vm/nr_hugepages", input=str(had + MIB // 2))
    try:
        free = meminfo(agent, "HugePages_Free")
        check(free >= MIB // 2, "the machine has", free, "free huge pages")
        # None beside those of the parent.
        agent.run("tee", "/proc/sys/vm/nr_hugepages",
                  input=str(meminfo(agent, "HugePages_Total") - free + MIB // 2))
        pid = parent(agent, "aside", "hugetlb")
        check(meminfo(agent, "HugePages_Free") == 0, "huge pages are left")
        for who, life in ((owner, "alive"), (pinning, "alive"), (owner, "gone")):
            pages_set_aside(who, node, pid, life, where_they_are=life == "gone", forced=who is pinning)
        until("free huge pages", lambda: meminfo(agent, "HugePages_Free") >= MIB // 2)
    finally:
        agent.run("tee", "/proc/sys/vm/nr_hugepages", input=str(had))


def reserved_address_space_stays_empty(pinning, node):
    """Pinning makes pages that are not there: what is registered where it is, is what is there."""
    agent, gib = pinning.agent, 64
    pid = parent(agent, "sparse", "sparse")
    prepared = pinning.prepare(pid)
    shadow = pinning.seed(prepared["seed"])["shadow_pid"]
    end_of(agent, pid)
    child = node.fork(prepared["ref"], "rdma")
    child.registered(PAGES + gib * 256)
    seed = pinning.seed(prepared["seed"])
    check(seed["pages_rdma_shadow"] >= PAGES + gib * 256, seed)
    kib = pinned(agent, shadow)
    check(kib <= (MIB + gib + 4) << 10, kib, seed)
    check(child.tell("HUP") == ["parts", str(gib * 256), "wrong", "0"], "reserved address space")
    row = child.row()
    check(row["pages_rdma"] >= gib * 250 and row["rdma_note"] is None, row)
    child.end()
    pinning.call("seed", "rm", "-", input=prepared["ref"])
    print(f"reserved: {kib >> 10} MiB pinned of {MIB + (gib << 10)}, {seed['rdma_registrations']} registrations;"
          f" {row['pages_rdma']} pages by RDMA, all words right", flush=True)


def pages_set_aside(owner, node, pid, life, where_they_are, forced):
    agent = owner.agent
    prepared = owner.prepare(pid)
    shadow = owner.seed(prepared["seed"])["shadow_pid"]
    if life == "gone":
        end_of(agent, pid)
    child = node.fork(prepared["ref"], "rdma")
    child.registered(PAGES)
    seed = owner.seed(prepared["seed"])
    if where_they_are:
        check(seed["pages_rdma_shadow"] >= PAGES and pinned(agent, shadow) >= MIB << 10, seed)
        check(seed["rdma_copied_bytes"] < MIB << 19, seed)
    else:
        check(seed["rdma_copied_bytes"] >= MIB << 20, seed)
    check(bool(seed["rdma_note"]) == forced, seed)
    child.touch()
    before = child.row()
    owner.signal("STOP")
    try:
        child.verify()
    finally:
        owner.signal("CONT")
    row = child.row()
    direct = row["pages_rdma"] - before["pages_rdma"]
    came = [one["pages_fetched"] + one["pages_prefetched"] for one in (before, row)]
    check(direct >= came[1] - came[0] > PAGES // 2 and row["rdma_note"] is None, before, row)
    child.end()
    owner.call("seed", "rm", "-", input=prepared["ref"])
    print(f"set aside (hugetlb), parent {life}: {seed['pages_rdma_shadow']} pages of {seed['pages_rdma']} where they"
          f" are, {seed['rdma_copied_bytes'] >> 10} KiB copied, {seed['rdma_registrations']} registrations;"
          f" {direct} pages by RDMA with the owner stopped; note: {seed['rdma_note']}", flush=True)


def an_owner_that_is_slow_is_not_asked_twice(owner, node, pid):
    """While it registers it answers nothing for some pings, and then all that it was asked."""
    prepared = owner.prepare(pid)
    child = node.fork(prepared["ref"], "rdma")
    for _ in range(2):
        owner.signal("STOP")
        time.sleep(2)
        owner.signal("CONT")
        time.sleep(0.3)
    child.registered(PAGES)
    child.verify()
    row = child.row()
    check(row["state"] == "running" and row["pages_rdma"] > 0, row)
    child.end()
    owner.call("seed", "rm", "-", input=prepared["ref"])
    print("slow owner: asked once, answered once")


def pages_of_a_file_that_only_the_owner_has(owner, node):
    agent = owner.agent
    pid = parent(agent, "mapper", "/tmp/words")
    prepared = owner.prepare(pid)
    agent.run("rm", "/tmp/words")
    child = node.fork(prepared["ref"], "rdma")
    child.registered(PAGES)
    before = child.row()
    # Over TCP, which tells the owner that this node does not have the file.
    check(child.tell("HUP") == ["file", "8", "wrong", "0"], "the first words of a file")
    # In blocks of 4 MiB of address space, wherever the file lies; one that begins in its last MiB, where
    # nothing was touched, is not.
    child.registered(PAGES + 2048 - 256)
    between = child.row()
    check(child.tell("HUP") == ["file", str(1 << 20), "wrong", "0"], "a file")
    row = child.row()
    direct = row["pages_rdma"] - between["pages_rdma"]
    check(direct > 512, before, between, row)
    print(f"pages of a file: registered when they were asked for,"
          f" {direct} then by RDMA, all words right; its queue pair took"
          f" {row['rdma_link_us']} us")
    check(row["rdma_link_us"] > 0, row)
    child.end()
    owner.call("seed", "rm", "-", input=prepared["ref"])


def keys_open_what_they_are_for(agent):
    said = agent.run(KEYS)
    print(said, end="")
    check(said.endswith("keys: all as they must be\n"), said)


def seeds_do_nothing_to_each_other(agent):
    said = agent.run(PAIRS)
    print(said, end="")
    check(said.endswith("pairs: all as they must be\n"), said)


def a_revoked_seed_is_not_read(owner, node, pid):
    prepared = owner.prepare(pid)
    child = node.fork(prepared["ref"], "rdma")
    child.registered(PAGES)
    child.touch()
    owner.call("seed", "rm", "-", input=prepared["ref"])
    node.agent.ask(run=[MITOSIS, "kill", str(child.pid), "-s", "USR1", "--socket", node.socket])
    row = until("end", lambda: child.row() if child.row()["state"] == "ended" else None)
    check("revoked" in row["reason"], row)
    print("revoked:", row["reason"], "| note:", row["rdma_note"])


def pairs(node):
    """Numbers of the connected queue pairs of a node: those that its daemon serves, and those that its pager
    reads over. They are listed with the thread that made them."""
    mine = set(node.processes())
    daemon, pager = set(), set()
    for line in node.agent.run("rdma", "resource", "show", "qp").splitlines():
        words = line.split()
        if "RC" not in words or "pid" not in words:
            continue
        status = node.agent.ask(run=["grep", "Tgid:", f"/proc/{words[words.index('pid') + 1]}/status"])["out"]
        pid = status.split()[-1] if status else None
        if pid in mine:
            (daemon if pid == str(node.pid) else pager).add(words[words.index("lqpn") + 1])
    return daemon, pager


def seeds_share_a_queue_pair(owner, reader, pid):
    """However many seeds of a node are read by another: there is one, which outlives them."""
    prepared = [owner.prepare(pid) for _ in range(6)]
    check(pairs(owner) == (set(), set()), pairs(owner))
    children = [reader.fork(one["ref"], "auto") for one in prepared]
    for child in children:
        child.registered(PAGES)
        check(child.row()["rdma_link_us"] > 0, child.row())
    check(len(pairs(owner)[0]) == len(pairs(reader)[1]) == 1, pairs(owner), pairs(reader))
    print(f"shared: {len(children)} seeds, one queue pair, made in"
          f" {children[0].row()['rdma_link_us']} us", flush=True)
    one_of_them_is_revoked(owner, prepared, children[:3], reader)
    one_of_them_is_revoked_unheard(owner, prepared[3:], children[3:], reader)
    descriptors_have_one(owner, reader, prepared[-1])
    for child in children[1:3] + children[4:]:
        child.end()
    check(len(pairs(reader)[1]) == 1, "gone at once:", pairs(reader))


def killed(child):
    row = until("end", lambda: child.row() if child.row()["state"] == "ended" else None)
    check("revoked" in row["reason"], row)


def one_of_them_is_revoked(owner, prepared, children, reader):
    """While all are read. That no READ is an error then is shown where the reader does not wait for a
    processor (pairs.rs); here the others are read, whatever becomes of the queue pair."""
    for child in children:
        child.ask()
    owner.call("seed", "rm", "-", input=prepared[0]["ref"])
    for child in children[1:]:
        child.verified()
        row = child.row()
        check(row["pages_rdma"] > 0, row)
        child.registered(PAGES)
    killed(children[0])
    rows = [child.row() for child in children[1:]]
    print(f"shared: one seed revoked, the others: {[row['pages_rdma'] for row in rows]} pages by RDMA, all"
          f" words right, notes {[row['rdma_note'] for row in rows]}", flush=True)


def one_of_them_is_revoked_unheard(owner, prepared, children, reader):
    """Its reader is stopped meanwhile, and hears of it when the windows are closed. Whether a READ comes too
    late or none is made: the others are read, over TCP for a while or not."""
    pager = [pid for pid in reader.processes() if pid != str(reader.pid)]
    reader.agent.run("kill", "-STOP", *pager)
    try:
        for child in children:
            # Only sends signals; nothing of the reader's node is asked that its pager answers.
            reader.agent.run("kill", "-USR1", str(child.pid))
        owner.call("seed", "rm", "-", input=prepared[0]["ref"])
    finally:
        reader.agent.run("kill", "-CONT", *pager)
    for child in children[1:]:
        child.verified()
        child.registered(PAGES)
    killed(children[0])
    check(len(pairs(owner)[0]) == len(pairs(reader)[1]) == 1, pairs(owner), pairs(reader))
    print(f"shared: one seed revoked unheard, notes of the others: {[c.row()['rdma_note'] for c in children[1:]]}",
          flush=True)


def descriptors_have_one(owner, reader, prepared):
    for _ in range(3):
        child = reader.fork(prepared["ref"], "rdma")
        check("read in" in child.started["transport_why"], child.started)
        child.end()
    counts = len(pairs(owner)[0]), len(pairs(reader)[1])
    check(counts == (2, 1), "queue pairs:", counts)


def seeds_that_nobody_reads_have_no_queue_pair(owner, reader):
    """Both sides wait for a minute."""
    check(owner.json("seed", "ls"), "no seeds are left")
    until("the end of the queue pairs",
          lambda: pairs(reader)[1] == set() and pairs(owner) == (set(), set()))
    print("shared: nobody reads for a minute, no queue pair is left", flush=True)


def a_grandchild_reads_from_both_owners(owner, node, third, prepared):
    child = node.fork(prepared["ref"], "rdma")
    child.registered(PAGES)
    child.touch()
    own = node.prepare(child.pid)
    grandchild = third.fork(own["ref"], "rdma")
    grandchild.registered(PAGES + 1)
    grandchild.verify()
    row = grandchild.row()
    check(row["transport"] == "rdma" and row["pages_rdma"] > 0, row)
    print(f"grandchild: {row['pages_rdma']} pages by RDMA from two owners, all words right")
    grandchild.end()
    child.end()


def what_cannot_be_had_is_an_error(owner, forbidding, prepared):
    said = forbidding.call("fork", "--detach", "--transport", "rdma", "-", input=prepared["ref"],
                           fails=True)
    check("--transport tcp" in said, said)
    child = forbidding.fork(prepared["ref"], "auto")
    check(child.started["transport"] == "tcp", child.started)
    print("forbidden:", child.started["transport_why"])
    child.end()


def networks_are_kept_to(owner, closed, node, wary, prepared):
    """Either side may trust no network that the other is in."""
    theirs = closed.prepare(parent(closed.agent, "closed"))
    for reader, seed, who in ((wary, prepared, owner), (node, theirs, node)):
        said = reader.call("fork", "--detach", "--transport", "rdma", "-", input=seed["ref"], fails=True)
        what = f"{who.agent.address} is in none of the networks that --rdma-networks names"
        check(what in said, said)
        child = reader.fork(seed["ref"], "auto")
        check(child.started["transport"] == "tcp", child.started)
        check(what in child.started["transport_why"], child.started)
        child.verify()
        check(child.row()["pages_rdma"] == 0, child.row())
        child.end()
        print("forbidden by network:", child.started["transport_why"], flush=True)
    check(closed.seed(theirs["seed"])["pages_rdma"] == 0, "registered for nobody")


PYTHON = "/usr/bin/python3"


class Server:
    """CPython's http.server, as a parent."""

    def __init__(self, agent, port):
        self.agent, self.port = agent, port
        self.pid = agent.spawn("/tmp/http.log", PYTHON, "-m", "http.server", str(port), "-d", "/tmp")
        until("http.server", lambda: "200" in agent.ask(ask=GET, port=port)["said"])

    def response(self, owner, node, transport, ahead=None):
        """Microseconds from the request for a child of a seed of its own to its first response; with a
        node that has asked for the seed's pages to be registered before, if one is named."""
        prepared = owner.prepare(self.pid)
        if ahead is not None:
            child = ahead.fork(prepared["ref"], transport)
            until("all of it registered", lambda: owner.seed(prepared["seed"])["pages_rdma"] > 0)
            child.registered(owner.seed(prepared["seed"])["pages_rdma"])
            child.end()
        fork = {"reference": prepared["ref"], "net": "own", "transport": transport, "via": "direct"}
        said = node.agent.ask(control={"fork": fork}, socket=node.socket, then=GET, port=self.port)
        check("200" in said.get("said", ""), said)
        started = said["reply"]["forked"]["children"][0]
        check(started["transport"] == transport, started)
        node.request(kill={"pid": started["pid"], "signal": 9})
        owner.call("seed", "rm", "-", input=prepared["ref"])
        return said["us"]


GET = "GET / HTTP/1.0\r\n\r"


def responses(owner, agent, ways):
    """Of children that each are of a seed of their own, on a node that was started for them; the ways take
    turns."""
    server = Server(owner.agent, 8001)
    ahead = Node(agent, "ahead", 7040)
    results = {name: [] for name in ways}
    try:
        for number in range(5):
            for name, transport in ways.items():
                node = Node(agent, f"{name}-{number}", 7041)
                try:
                    before = ahead if name != transport else None
                    results[name].append(server.response(owner, node, transport, before))
                finally:
                    node.stop()
    finally:
        ahead.stop()
        owner.agent.run("kill", str(server.pid))
    return results


def bench(owner, agent, pid):
    """Each child is of a seed of its own and on a node that holds nothing: what a child of the same seed
    was sent, or a template has, would come by neither way."""
    results = {}
    for transport in ("tcp", "rdma"):
        touches, rates, cpu, starts = [], [], [], []
        for number in range(3):
            prepared = owner.prepare(pid)
            node = Node(agent, f"{transport}-{number}", 7020 + number)
            try:
                child = node.fork(prepared["ref"], transport, "--via", "direct")
                child.registered(PAGES if transport == "rdma" else 0)
                starts.append(child.started["start_us"])
                touches += child.touch()
                before = owner.stats()
                rates.append(child.verify())
                cpu.append(sum(t for _, t in owner.stats()) - sum(t for _, t in before))
                row = child.row()
                check((row["pages_rdma"] > 0) == (transport == "rdma"), row)
                check(row["pages_held"] < 256 and row["via"] == "direct", row)
                child.end()
            finally:
                node.stop()
            owner.call("seed", "rm", "-", input=prepared["ref"])
        touches.sort()
        results[transport] = {
            "fault_us": {"min": touches[0], "median": statistics.median(touches),
                         "p99": touches[int(len(touches) * 0.99)], "n": len(touches)},
            "sequential_mib_per_s": [round(MIB * 1e6 / us, 2) for us in rates],
            "owner_cpu_ms_per_gib": [ticks * 10 * 1024 // MIB for ticks in cpu],
            "start_us": starts,
        }
    ways = {"tcp": "tcp", "rdma": "rdma", "registered": "rdma"}
    took = responses(owner, agent, ways)
    results["tcp"]["first_response_us"] = took["tcp"]
    results["rdma"]["first_response_us"] = took["rdma"]
    results["rdma"]["first_response_of_registered_us"] = took["registered"]
    return results


def placements(agent, node):
    """Copies against registering the shadow's own memory, with the parent alive and gone."""
    results = {}
    for number, pinning in enumerate(("copy", "shadow", "auto")):
        owner = Node(agent, f"pins-{pinning}", 7010 + number, "--rdma-memory", pinning)
        try:
            for life in ("alive", "gone"):
                pid = parent(agent, f"{pinning}-{life}")
                prepared = owner.prepare(pid)
                shadow = owner.seed(prepared["seed"])["shadow_pid"]
                if life == "gone":
                    end_of(agent, pid)
                child = node.fork(prepared["ref"], "rdma")
                child.registered(PAGES)
                seed = owner.seed(prepared["seed"])
                rate = child.verify()
                results[f"{pinning}, parent {life}"] = {
                    "register_us": seed["rdma_register_us"],
                    "copied_kib": seed["rdma_copied_bytes"] >> 10,
                    "registrations": seed["rdma_registrations"],
                    "pages": seed["pages_rdma"],
                    "pages_in_the_shadow": seed["pages_rdma_shadow"],
                    "pinned_in_the_shadow_kib": pinned(agent, shadow),
                    "sequential_mib_per_s": round(MIB * 1e6 / rate, 2),
                }
                print("placement:", pinning, life, results[f"{pinning}, parent {life}"], flush=True)
                child.end()
                owner.call("seed", "rm", "-", input=prepared["ref"])
                agent.run("kill", "-9", str(pid)) if life == "alive" else None
        finally:
            owner.stop()
    return results


def suite(first, middle, last, everyone):
    owner = Node(first, "owner", 7001)
    known = ",".join(f"{address}/32" for address in ADDRESSES)
    small = Node(first, "small", 7002, "--rdma-limit-mib", "16", "--rdma-networks", known)
    pinning = Node(first, "pinning", 7006, "--rdma-memory", "shadow")
    node = Node(middle, "node", 7003)
    brief = Node(middle, "brief", 7007, page_timeout="5s")
    third = Node(last, "third", 7004) if len(ADDRESSES) > 2 else owner
    forbidding = Node(middle, "forbidding", 7005, "--transport", "tcp")
    elsewhere = "--rdma-networks", "192.0.2.0/24"
    closed = Node(first, "closed", 7008, *elsewhere)
    wary = Node(middle, "wary", 7009, *elsewhere)
    sharing, shared = Node(first, "sharing", 7030), Node(middle, "shared", 7031)
    everyone += [owner, small, pinning, node, brief, forbidding, closed, wary, sharing, shared]
    everyone += [third] if third is not owner else []
    pid = parent(first, "parent")
    prepared = owner.prepare(pid)
    for test, *about in [
        (keys_open_what_they_are_for, first),
        (seeds_do_nothing_to_each_other, first),
        (seeds_share_a_queue_pair, sharing, shared, pid),
        (reads_go_on_while_the_owner_is_stopped, owner, brief, prepared),
        (descriptors_are_read, owner, node, prepared),
        (what_is_not_registered_comes_over_tcp, small, node, pid),
        (a_shadow_registers_what_it_has_for_itself, owner, node),
        (a_shadow_registers_and_makes_children, owner, node),
        (pages_of_2_mib_stay_whole, owner, node),
        (pages_that_were_set_aside, owner, node, pinning),
        (reserved_address_space_stays_empty, pinning, node),
        (an_owner_that_is_slow_is_not_asked_twice, owner, node, pid),
        (pages_of_a_file_that_only_the_owner_has, owner, node),
        (an_unpinned_shadow_is_not_pinned, small, node),
        (a_shadow_that_cannot_be_asked_is_copied, owner, node),
        (a_revoked_seed_is_not_read, owner, node, pid),
        (a_grandchild_reads_from_both_owners, owner, node, third, prepared),
        (what_cannot_be_had_is_an_error, owner, forbidding, prepared),
        (networks_are_kept_to, owner, closed, node, wary, prepared),
        (seeds_that_nobody_reads_have_no_queue_pair, sharing, shared),
    ]:
        if any(part in test.__name__ for part in ONLY):
            test(*about)
    if RESULTS == "bench":
        results = bench(owner, middle, pid)
        results["placement"] = placements(first, node)
        print("lab-result:", json.dumps(results), flush=True)


def main():
    # One address: both parts on one machine, each with a daemon and a socket of its own.
    agents = {address: Agent(address) for address in ADDRESSES}
    first, last = agents[ADDRESSES[0]], agents[ADDRESSES[-1]]
    middle = agents[ADDRESSES[min(1, len(ADDRESSES) - 1)]]
    everyone = []
    status = 1
    try:
        for agent in agents.values():
            items = {item["name"]: item for item in json.loads(agent.run(
                MITOSIS, "check", "-o", "json"))}
            check(items["rdma"]["verdict"] == "ok", items["rdma"])
        if RESULTS == "transports":
            everyone.append(Node(first, "owner", 7001))
            results = bench(everyone[0], middle, parent(first, "parent"))
            print("lab-result:", json.dumps(results), flush=True)
        elif RESULTS == "placement":
            everyone.append(Node(middle, "node", 7003))
            print("lab-result:", json.dumps(placements(first, everyone[0])), flush=True)
        else:
            suite(first, middle, last, everyone)
        print("suite: all passed")
        status = 0
    except AssertionError as error:
        where = traceback.extract_tb(error.__traceback__)
        print("suite: FAILED:", error, where[min(2, len(where) - 1)])
        for node in everyone:
            print(f"-- {node.name}:", node.agent.read(f"/tmp/{node.name}.log")[-2000:])
    finally:
        for node in everyone:
            node.stop()
        for agent in agents.values():
            agent.end()
    sys.stdout.flush()
    sys.exit(status)


main()
