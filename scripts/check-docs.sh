#!/usr/bin/env bash
# What the documents tell a reader to type must exist: each `mitosis` command of a code block with
# its flags, each make target, each script, each relative link. Usage: check-docs.sh [BINARY]
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${1:-${MITOSIS_BIN:-}}
if [ -z "$bin" ]; then
    cargo build --quiet -p mitosis
    bin=${CARGO_TARGET_DIR:-target}/debug/mitosis
fi

BIN="$bin" python3 - <<'PY'
import glob, os, re, subprocess, sys

BIN = os.environ["BIN"]
failed = False
checked = {"commands": 0, "targets": 0, "links": 0, "files": 0}
help_of = {}

def complain(where, text):
    global failed
    failed = True
    print(f"check-docs: {where}: {text}", file=sys.stderr)

def help_text(verbs):
    if verbs not in help_of:
        run = subprocess.run([BIN, *verbs, "--help"], capture_output=True, text=True, timeout=30)
        help_of[verbs] = run.stdout if run.returncode == 0 else None
    return help_of[verbs]

def command(where, words):
    """`mitosis` with its arguments: the verbs must exist and know the flags."""
    checked["commands"] += 1
    verbs = ()
    for word in words:
        if not re.fullmatch(r"[a-z][a-z-]*", word) or help_text(verbs + (word,)) is None:
            break
        verbs += (word,)
    if not verbs and words and not words[0].startswith("-"):
        return complain(where, f"no such verb: mitosis {words[0]}")
    text = help_text(verbs)
    if text is None:
        return complain(where, f"mitosis {' '.join(verbs)} --help fails")
    if re.search(r"^Commands:", text, re.M) and words[len(verbs):] and not words[len(verbs)].startswith("-"):
        complain(where, f"no such verb: mitosis {' '.join(words[:len(verbs) + 1])}")
    for flag in words[len(verbs):]:
        if flag == "--":
            break
        name = flag.split("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]*|-[a-zA-Z]", name):
            if not re.search(r"(^|[\s,])" + re.escape(name) + r"($|[\s,=<\[])", text, re.M):
                complain(where, f"mitosis {' '.join(verbs)} has no flag {name}")

def shell_line(where, line):
    line = re.sub(r"^\$ ", "", line.strip())
    if line.startswith("#"):
        return
    for part in re.split(r"\||;|&&|\$\(|[()`]|&", line):
        words = [w.strip("'\"") for w in part.split()]
        while words and (words[0] in ("sudo", "exec", "time") or "=" in words[0]):
            words.pop(0)
        if not words:
            continue
        if "#" in words:
            words = words[: words.index("#")]
        name = words[0] if words else ""
        if name == "mitosis" or name.endswith("/mitosis"):
            command(where, words[1:])
        elif name == "make":
            for target in words[1:]:
                if re.fullmatch(r"[a-z][a-z-]*", target):
                    checked["targets"] += 1
                    if not re.search(rf"^{target}:", makefile, re.M):
                        complain(where, f"no make target {target}")
        elif re.match(r"(\./)?(scripts|\.ci|tests)/", name):
            checked["files"] += 1
            if not os.path.exists(name):
                complain(where, f"no such file: {name}")

makefile = open("Makefile").read() if os.path.exists("Makefile") else ""
for path in sorted(glob.glob("*.md") + glob.glob("docs/**/*.md", recursive=True)):
    fence = None
    joined = ""
    for number, line in enumerate(open(path), 1):
        where = f"{path}:{number}"
        mark = re.match(r"\s*```(\w*)", line)
        if mark:
            fence = None if fence is not None else mark.group(1)
            continue
        if fence in ("sh", "console", "bash", "shell"):
            joined += line.rstrip("\n")
            if joined.endswith("\\"):
                joined = joined[:-1] + " "
                continue
            if fence != "console" or joined.lstrip().startswith("$ "):
                shell_line(where, joined)
            joined = ""
        elif fence is None:
            for target in re.findall(r"\]\(([^)\s]+)\)", line):
                if re.match(r"[a-z]+:|#", target):
                    continue
                checked["links"] += 1
                target = target.split("#")[0]
                if not os.path.exists(os.path.join(os.path.dirname(path), target)):
                    complain(where, f"dead link: {target}")
            for file in re.findall(r"`((?:crates|docs|scripts|tests|fuzz|bench)/[\w./-]+\w)`", line):
                checked["files"] += 1
                if not os.path.exists(file):
                    complain(where, f"no such file: {file}")
# A document that neither the first page nor the map names is found by nobody.
for page in ("README.md", "ARCHITECTURE.md"):
    text = open(page).read()
    for path in sorted(glob.glob("docs/*.md")):
        checked["links"] += 1
        if f"]({path})" not in text:
            complain(page, f"does not name {path}")
if failed:
    sys.exit(1)
print("check-docs: " + ", ".join(f"{n} {what}" for what, n in checked.items()) + " exist")
PY
