# SPDX-License-Identifier: MIT
"""contenders.py: who is measured, and how. Each is a class with measure(), which takes a path, a workload
and seconds, and returns {"rate": requests per second, "median_us", "p99_us", "p999_us", "cpu_us": of
all its processes for each request, where they can be told}."""
import contextlib
import json
import os
import re
import resource
import signal
import stat
import subprocess
import tempfile
import time

from images import key_of, key_words, run

WAIT_S = 30


def clock_ticks(pid):
    """CPU seconds of a process, all its threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def warm(path):
    """Into the page cache, all of it."""
    with open(path, "rb") as f:
        while f.read(1 << 20):
            pass


# ---- in process ----

class Engine:
    """`ublk-qcow2 bench`: the engine without a kernel front end."""

    def __init__(self, env, target="qcow2", cache="direct", queues=0):
        self.env, self.target, self.cache, self.queues = env, target, cache, queues
        self.raw = target == "loop"

    def measure(self, path, w, seconds):
        if self.cache == "buffered":
            warm(path)
        words = ["bench", "--json", "--target", self.target, "--cache", self.cache, "-d", w.depth, "-s", w.bs,
                 "--queues", self.queues or w.queues]
        words += {"read": [], "write": ["-w"], "mix": ["--rwmix", 50]}[w.rw]
        words += ["-c", w.count] if w.count else ["--time", seconds]
        words += ["--pattern", "random"] if w.random else ["-S", w.step or w.bs]
        words += ["--flush-interval", w.flush] if w.flush else []
        words += ["--cache-size", w.cache] if w.cache and not self.raw else []
        got = json.loads(run(self.env.program, *words, *key_words(path), path))
        kind = got["writes"] if w.rw == "write" else got["reads"]
        requests = got["reads"]["count"] + got["writes"]["count"]
        median = kind["latency_median_ns"] + (got["flushes"]["latency_median_ns"] if w.flush == 1 else 0)
        return {"rate": got["per_second"], "median_us": median / 1e3,
                "p99_us": kind["latency_99_ns"] / 1e3, "p999_us": kind["latency_99_9_ns"] / 1e3,
                "cpu_us": (got["user_ns"] + got["system_ns"]) / 1e3 / requests,
                "user_us": got["user_ns"] / 1e3 / requests, "enters": got["enters"] / requests}


class QemuImg:
    """`qemu-img bench`. It counts requests, not time: the first run finds out how many. Of encrypted images
    it cannot be told the passphrase."""

    def __init__(self, env, aio="io_uring", cache="none"):
        self.aio, self.cache, self.raw, self.rates = aio, cache, False, {}

    def once(self, path, w, count):
        words = ["-c", count, "-d", w.depth, "-s", w.bs, "-f", "qcow2", "-t", self.cache, "-i", self.aio]
        # No random offsets here: a step that is prime to the size goes everywhere.
        words += ["-S", ((33331 if w.bs < 65536 else 3331) * w.bs if w.random else w.step or w.bs)]
        words += ["-w"] if w.rw == "write" else []
        words += [f"--flush-interval={w.flush}"] if w.flush else []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = run("qemu-img", "bench", *words, path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"rate": count / float(re.search(r"completed in ([0-9.]+) seconds", out)[1]),
                "cpu_us": used * 1e6 / count}

    def measure(self, path, w, seconds):
        if self.cache != "none":
            warm(path)
        if w.count:
            return self.once(path, w, w.count)
        if w not in self.rates:
            self.rates[w] = self.once(path, w, 2000 // (w.flush and 10 or 1))["rate"]
        got = self.once(path, w, max(100, int(self.rates[w] * seconds)))
        self.rates[w] = got["rate"]
        return got


# ---- by fio, on a file or device ----

def fio(name, w, seconds, size=0, direct=True, engine=("--ioengine=io_uring", "--registerfiles=1")):
    words = ["--name=bench", "--output-format=json", f"--bs={w.bs}", f"--iodepth={w.depth}",
             f"--direct={int(direct)}", "--invalidate=0", f"--numjobs={w.queues}", "--group_reporting", "--randrepeat=0",
             "--norandommap", "--thread", "--clat_percentiles=0", "--lat_percentiles=1",
             "--fallocate=none", *engine]
    kind = {"read": "read", "write": "write", "mix": "rw"}[w.rw]
    words += [f"--rw={'rand' if w.random else ''}{kind}"]
    if w.depth > 1 and "io_uring" in engine[0]:
        # what a loop that submits once a turn does
        words += ["--iodepth_batch_submit=32", "--iodepth_batch_complete_min=1", "--iodepth_batch_complete_max=64"]
    if w.count:
        words += [f"--io_size={w.count * w.bs}"]
    else:
        words += ["--time_based", f"--runtime={seconds}"]
    if size:
        words += [f"--size={size}"]
    if w.flush:
        words += [f"--fdatasync={w.flush}"]
    if name:
        words += [f"--filename={name}"]
    text = run("fio", *words)
    job = json.loads(text[text.index("{"):])["jobs"][0]
    out = {"rate": job["read"]["iops"] + job["write"]["iops"]}
    percentiles = job["write" if w.rw == "write" else "read"]["lat_ns"].get("percentile", {})
    for key, name in (("50.000000", "median_us"), ("99.000000", "p99_us"), ("99.900000", "p999_us")):
        if key in percentiles:
            out[name] = percentiles[key] / 1e3
    if w.flush == 1:
        out["median_us"] += job["sync"]["lat_ns"]["percentile"]["50.000000"] / 1e3
    requests = job["read"]["total_ios"] + job["write"]["total_ios"]
    out["client_us"] = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1e3 / max(1, requests)
    return out


def discard_all(name):
    """Seconds that it takes."""
    begun = time.monotonic()
    if stat.S_ISBLK(os.stat(name).st_mode):
        run("blkdiscard", name)
    else:
        run("fallocate", "--punch-hole", "--offset", 0, "--length", os.path.getsize(name), name)
    return time.monotonic() - begun


class FioRaw:
    """The limit: fio on the raw file."""
    raw = True

    def __init__(self, env, direct=True):
        self.direct = direct

    def measure(self, path, w, seconds):
        if not self.direct:
            warm(path)
        return fio(path, w, seconds, os.path.getsize(path), self.direct)


class Served:
    """Something that a process serves; fio is its client. serve() is a context manager that gives what fio
    is to be called with, and the processes whose CPU time counts."""
    raw = False

    def __init__(self, env):
        self.env, self.proc = env, None

    def last_words(self):
        if not self.proc:
            return ""
        self.proc.errors.seek(0)
        return f"status {self.proc.poll()}: {self.proc.errors.read().strip()}"

    def measure(self, path, w, seconds):
        with self.serve(path) as (call, pids):
            if w.rw == "discard":
                return {"rate": 1 / discard_all(call["name"])}
            before = sum(clock_ticks(pid) for pid in pids)
            got = fio(w=w, seconds=seconds, **call)
            if gone := [pid for pid in pids if not os.path.exists(f"/proc/{pid}")]:
                raise RuntimeError(f"process {gone[0]} died under load: {self.last_words()}")
            if pids:
                used = sum(clock_ticks(pid) for pid in pids) - before
                got["cpu_us"] = used * 1e6 / max(1, got["rate"] * seconds)
            return got


@contextlib.contextmanager
def process(words, env=None, pipe=False):
    errors = tempfile.TemporaryFile("w+")
    proc = subprocess.Popen([str(w) for w in words], env=env, text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE if pipe else subprocess.DEVNULL, stderr=errors)
    proc.errors = errors
    try:
        yield proc
    finally:
        # Again and again: a device that is still open ignores it, and fio's ring holds its file for a while.
        end = time.monotonic() + WAIT_S
        while proc.poll() is None and time.monotonic() < end:
            proc.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                proc.wait(0.2)
        proc.kill()
        proc.wait()


def wait_until(true, what):
    end = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come")
        time.sleep(0.01)


class Attached(Served):
    """`ublk-qcow2 add`, in the foreground."""

    def __init__(self, env, *options, target="qcow2", suffix=""):
        super().__init__(env)
        self.options, self.target, self.suffix, self.raw = options, target, suffix, target != "qcow2"

    @contextlib.contextmanager
    def serve(self, path):
        words = [self.env.program, "add", "--foreground", "--target", self.target, *self.options]
        words += ["--size", os.path.getsize(path)] if self.target == "null" else [*key_words(path), path]
        with process(words, self.env.variables, pipe=True) as proc:
            self.proc = proc
            device = proc.stdout.readline().strip()
            if not device:
                proc.wait(WAIT_S)
                raise RuntimeError(f"{' '.join(map(str, words[1:]))}: {self.last_words()}")
            size = 0 if device.startswith("/dev/") else os.path.getsize(device)
            yield {"name": device, "size": size}, [proc.pid]


class KernelLoop(Served):
    raw = True

    @contextlib.contextmanager
    def serve(self, path):
        device = run("losetup", "--find", "--show", "--direct-io=on", path).strip()
        try:
            yield {"name": device}, []
        finally:
            run("losetup", "-d", device)


def secret_words(path):
    """What QEMU's programs are told of an encrypted image's passphrase."""
    return ["--object", f"secret,id=key,file={key_of(path)}"] if key_of(path) else []


class QsdFuse(Served):
    """qemu-storage-daemon's FUSE export."""

    @contextlib.contextmanager
    def serve(self, path):
        mount = path + ".fuse"
        with open(mount, "w", encoding="ascii"):
            pass
        words = ["qemu-storage-daemon", *secret_words(path), "--blockdev",
                 f"driver=file,node-name=f,filename={path},cache.direct=on,aio=io_uring",
                 "--blockdev", "driver=qcow2,node-name=q,file=f" + (",encrypt.format=luks,encrypt.key-secret=key"
                                                                    if key_of(path) else ""),
                 "--export", f"type=fuse,id=e,node-name=q,mountpoint={mount},writable=on"]
        try:
            with process(words) as proc:
                wait_until(lambda: os.path.getsize(mount) or proc.poll() is not None, mount)
                yield {"name": mount, "size": os.path.getsize(mount)}, [proc.pid]
        finally:
            os.unlink(mount)


class QemuNbdSocket(Served):
    """qemu-nbd over a UNIX socket, with fio as the client: no block device."""

    @contextlib.contextmanager
    def serve(self, path):
        socket = path + ".sock"
        image = ["-f", "qcow2", path]
        if key_of(path):
            image = [*secret_words(path), "--image-opts",
                     f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,file.filename={path}"]
        words = ["qemu-nbd", "-k", socket, "--cache=none", "--aio=io_uring", "--persistent", "--shared=8", *image]
        with process(words) as proc:
            wait_until(lambda: os.path.exists(socket) or proc.poll() is not None, socket)
            yield {"name": "", "size": self.env.size_mib << 20,
                   "engine": ("--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}")}, [proc.pid]
        if os.path.exists(socket):
            os.unlink(socket)


class QemuNbd(Served):
    """qemu-nbd on the kernel's /dev/nbd0: what this program takes the place of."""

    @contextlib.contextmanager
    def serve(self, path):
        # without --verbose it forks, and the child that serves is not the process known here
        words = ["qemu-nbd", "--verbose", "-c", "/dev/nbd0", "-f", "qcow2", "--cache=none", "--aio=io_uring", path]

        def connected():
            with open("/sys/block/nbd0/size", encoding="ascii") as f:
                return int(f.read()) > 0

        with process(words) as proc:
            wait_until(lambda: connected() or proc.poll() is not None, "/dev/nbd0")
            try:
                yield {"name": "/dev/nbd0"}, [proc.pid]
            finally:
                run("qemu-nbd", "-d", "/dev/nbd0")
                wait_until(lambda: not connected(), "the end of /dev/nbd0")


CONTENDERS = {
    "engine": Engine,
    "engine-raw": lambda env: Engine(env, "loop"),
    "engine-cached": lambda env: Engine(env, cache="buffered"),
    "engine-cached-1": lambda env: Engine(env, cache="buffered", queues=1),
    "engine-raw-cached": lambda env: Engine(env, "loop", "buffered"),
    "qemu-img": QemuImg,
    "qemu-img-threads": lambda env: QemuImg(env, "threads"),
    "qemu-img-cached": lambda env: QemuImg(env, cache="writeback"),
    "fio-raw": FioRaw,
    "fio-raw-cached": lambda env: FioRaw(env, direct=False),
    "fuse-file": lambda env: Attached(env, "--frontend", "fuse", "--no-loop"),
    "fuse-loop": lambda env: Attached(env, "--frontend", "fuse"),
    "fuse-raw-file": lambda env: Attached(env, "--frontend", "fuse", "--no-loop", target="loop"),
    "fuse-raw-loop": lambda env: Attached(env, "--frontend", "fuse", target="loop"),
    "fuse-null-file": lambda env: Attached(env, "--frontend", "fuse", "--no-loop", target="null"),
    "qsd-fuse": QsdFuse,
    "qemu-nbd-socket": QemuNbdSocket,
    "kernel-loop": KernelLoop,
    "ublk": lambda env: Attached(env, "--frontend", "ublk"),
    "ublk-raw": lambda env: Attached(env, "--frontend", "ublk", target="loop"),
    "ublk-null": lambda env: Attached(env, "--frontend", "ublk", target="null"),
    "qemu-nbd": QemuNbd,
}
