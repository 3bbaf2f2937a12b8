# SPDX-License-Identifier: MIT
"""images.py: the images that rows work on, by kind. What a kind needs that the program lacks is found by
trying: an image that `ublk-qcow2 bench` refuses is Absent, with the program's own words."""
import os
import shutil
import subprocess


class Absent(Exception):
    """The row cannot be measured here; the text says why."""


def run(*words, **more):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Absent(f"{os.path.basename(str(words[0]))} {words[1]}: {lines[-1] if lines else 'failed'}")
    return done.stdout


def create(path, size_mib, *options):
    run("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", ",".join(options)] if options else []), path,
        f"{size_mib}M")


def raw(path, size_mib):
    """Every block is there, and is not zeros."""
    block = os.urandom(1 << 20)
    with open(path, "wb") as out:
        for _ in range(size_mib):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())


def text(path, size_mib):
    """What compresses to about a third, as files do."""
    words = [os.urandom(4).hex() for _ in range(256)]
    with open(path, "w", encoding="ascii") as out:
        for _ in range(size_mib):
            pick = os.urandom(1 << 17)
            out.write(" ".join(words[i] for i in pick)[:1 << 20].ljust(1 << 20))


def convert(source, path, *options):
    run("qemu-img", "convert", "-O", "qcow2", *options, source, path)


def with_content(make, path, size_mib, *options):
    make(path + ".raw", size_mib)
    try:
        convert(path + ".raw", path, *options)
    finally:
        os.unlink(path + ".raw")


def chain(path, length, size_mib):
    create(path + ".0", size_mib)
    with_content(raw, path + ".0", size_mib)
    for i in range(1, length + 1):
        name = path if i == length else f"{path}.{i}"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", os.path.basename(f"{path}.{i - 1}"), "-F", "qcow2",
            name)


def key_of(path):
    """The file with an encrypted image's passphrase; None: it is not encrypted."""
    return path + ".key" if os.path.exists(path + ".key") else None


def key_words(path):
    """What this program's commands are told of it."""
    return ["--key-file", key_of(path)] if key_of(path) else []


def luks(path, size_mib):
    with open(path + ".key", "w", encoding="ascii") as out:
        out.write("of the benchmark alone")
    for left in range(9, -1, -1):
        try:
            with_content(raw, path, size_mib, "--object", f"secret,id=key,file={path}.key", "-o",
                         "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10")
            return
        except Absent as why:  # what it measures of the CPU was too short for its clock
            if not left or "accurate CPU usage" not in str(why):
                raise


def snapshot(path, size_mib):
    with_content(raw, path, size_mib)
    run("qemu-img", "snapshot", "-c", "one", path)


def sparse_raw(path, size_mib):
    with open(path, "wb") as out:
        out.truncate(size_mib << 20)


MAKERS = {
    "raw": raw,
    "raw-empty": sparse_raw,
    "mapped": lambda path, mib: with_content(raw, path, mib),
    "empty": create,
    "extended-l2": lambda path, mib: create(path, mib, "extended_l2=on", "cluster_size=128k"),
    "deflate": lambda path, mib: with_content(text, path, mib, "-c"),
    "zstd": lambda path, mib: with_content(text, path, mib, "-c", "-o", "compression_type=zstd"),
    "chain-1": lambda path, mib: chain(path, 1, mib),
    "chain-8": lambda path, mib: chain(path, 8, mib),
    "chain-64": lambda path, mib: chain(path, 64, mib),
    "snapshot": snapshot,
    "luks": luks,
    "1t": lambda path, mib: create(path, 1 << 20, "preallocation=metadata"),
}


class Images:
    """Makes images in @folder when they are first asked for, and drops them all at the end."""

    def __init__(self, folder, size_mib, program):
        self.folder, self.size_mib, self.program, self.made = folder, size_mib, program, set()
        os.makedirs(folder, exist_ok=True)

    def path(self, kind, fresh=False):
        path = os.path.join(self.folder, kind)
        if fresh or kind not in self.made:
            if os.path.exists(path):
                os.unlink(path)
            MAKERS[kind](path, self.size_mib)
            if not kind.startswith("raw") and kind not in self.made:
                run(self.program, "bench", "-c", 1, *key_words(path), path)
            self.made.add(kind)
        return path

    def drop(self):
        with open("/proc/self/mounts", encoding="utf-8") as f:
            left = [line.split()[1] for line in f if line.split()[1].startswith(self.folder + "/")]
        for mount in left:
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
