"""What a suite in guests has measured, as JSON, from its log: results.py LOG NAME"""

import json
import os
import subprocess
import sys

PREFIX = "lab-result: "
NOTE = "emulated guests give shapes, not absolutes"


def main():
    with open(sys.argv[1], errors="replace") as log:
        lines = [line for line in log if line.startswith(PREFIX)]
    if not lines:
        sys.exit("no result in the log")
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True)
    result = {
        "note": NOTE,
        "lab": {"host_kernel": os.uname().release, "qemu": qemu.stdout.splitlines()[0]},
        sys.argv[2]: json.loads(lines[-1][len(PREFIX):]),
    }
    print(json.dumps(result, indent=1))


main()
