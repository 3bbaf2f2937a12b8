# SPDX-License-Identifier: MIT
"""counted.py: what a request costs in numbers that are the same in every run: instructions, system calls,
reads and syncs. What the tests of group budget hold, shown beside the figures that are timed."""
import os
import re
import subprocess

from images import Absent, create, run

REQUESTS = 5000
TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def instructions(budget, kind, image, op):
    """(of a request in the engine and its loop, of these in the map's lookup), by callgrind"""
    out = image + ".callgrind"
    run("valgrind", "-q", "--tool=callgrind", "--toggle-collect=measured_round", f"--callgrind-out-file={out}",
        budget, kind, image, op, REQUESTS)
    text = run("awk", "-v", f"REQUESTS={REQUESTS}", "-f", os.path.join(TOP, "tests/budget/costs.awk"), out)
    costs = dict(line.split(None, 1) for line in text.splitlines() if " " in line)
    os.unlink(out)
    return int(costs["own"]), int(costs["map"])


def budget_round(number, budget, *words):
    """What the budget program says of a round: enters, reads, writes, syncs."""
    fields = run(budget, *words).splitlines()[number - 1].split()
    return {key: int(value) for key, value in zip(fields[0::2], fields[1::2]) if value.isdigit()}


def system_calls(*words):
    """For each request: the difference of a long run and a short one, so that starting does not count."""
    totals = []
    for count in (REQUESTS, 5 * REQUESTS):
        command = [str(count) if w == "COUNT" else str(w) for w in words]
        done = subprocess.run(["strace", "-f", "-c", "-o", "/dev/stderr", *command], capture_output=True,
                              text=True, check=False)
        found = re.search(r"^100\.00.*\btotal$", done.stderr, re.M)
        if done.returncode or not found:
            raise Absent(f"strace: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        numbers = [int(n) for n in re.findall(r"(?<![\d.])\d+(?![\d.])", found[0])]
        totals.append(numbers[1] if len(numbers) > 1 else numbers[0])
    return (totals[1] - totals[0]) / (4 * REQUESTS)


def lines_instructions(budget, folder):
    """On a disk: a file in memory completes requests inside of their submission, which is another path."""
    image = os.path.join(folder, "counted")
    create(image, 16, "preallocation=falloc")
    for kind, where in (("memory", "over storage in memory"), ("file", "with the file's storage")):
        for op in ("read", "write"):
            own, lookup = instructions(budget, kind, image, op)
            yield f"instructions of a mapped 4k {op}, {where}", own, 1500
            yield "... of which in the map lookup", lookup, 300
    os.unlink(image)


def lines_storage(budget, program, folder):
    image = os.path.join(folder, "counted")
    create(image, 64, "preallocation=falloc")
    enters = budget_round(2, budget, "memory", image, "read", 64000)["enters"]
    yield "io_uring_enter calls for a request, 64 in flight, over storage in memory", enters / 64000, 1
    os.unlink(image)
    create(image, 1024)
    words = ("memory", image, "write", 2000, "flush", "depth=1")
    yield "syncs of a flush after one write, allocating", budget_round(1, budget, *words)["syncs"] / 2000, 3
    yield "syncs of a flush after one write, mapped", budget_round(2, budget, *words)["syncs"] / 2000, 1
    syncs = budget_round(1, budget, "memory", image, "write", 2000, "flush")["syncs"]
    yield "the same for each of 64 that wait, allocating", syncs / 2000, 3
    os.unlink(image)
    run(program, "create", "-q", "-o", "preallocation=metadata,cluster_size=256k", image, "1T")
    reads = budget_round(2, budget, "memory", image, "read", REQUESTS, f"cache={1 << 20}")["reads"]
    yield "reads of the storage for a random read, 1 TiB mapped, map cache of 1 MiB", reads / REQUESTS, 2
    os.unlink(image)


def lines_calls(program, folders):
    for medium, folder in folders.items():
        image = os.path.join(folder, "counted")
        create(image, 256, "preallocation=falloc")
        for who, words in (
                ("engine", [program, "bench", "-d", 64, "-c", "COUNT", image]),
                ("qemu-img bench", ["qemu-img", "bench", "-d", 64, "-c", "COUNT", "-f", "qcow2", "-t", "none",
                                    "-i", "io_uring", image])):
            yield f"system calls of a mapped 4k read, 64 in flight, {medium}: {who}", system_calls(*words), None
        os.unlink(image)


def measure(program, budget, folders):
    """[(what, counted, at most that is asked, or None)], and why something is missing as (what, text, None)."""
    out = []
    for lines in (lambda: lines_instructions(budget, folders["disk"]),
                  lambda: lines_storage(budget, program, folders["tmpfs"]),
                  lambda: lines_calls(program, folders)):
        try:
            out += lines()
        except (Absent, OSError, LookupError, ValueError) as why:
            out.append(("left out", str(why), None))
    return out
