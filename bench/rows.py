# SPDX-License-Identifier: MIT
"""rows.py: what is measured, as data. A row is a workload, the contenders that do it, and the ratios
that are asked of it. To add one, add a line to ROWS (and a kind to images.py if it needs a new one).

Row(name, level, what, workload, contenders, goals, ...):
  level       1 the engine in this process, 2 FUSE and its like on this host, 3 ublk in a guest kernel
  workload    W(rw, bs, depth, ...), see below
  contenders  names in contenders.py, each optionally followed by ":KIND", the image it works on;
              by default the row's image, or "raw" for those that serve a raw file
  goals       (A, B, ratio): the rate of A is to be at least ratio times that of B, median over the rounds;
              ratio None: shown, nothing is asked
  medium      "tmpfs" or "disk"
  full        only with BENCH=full
"""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class W:
    rw: str = "read"  # read, write, mix: half of each; discard: of everything, once
    bs: int = 4096
    depth: int = 64
    random: bool = True
    queues: int = 1
    flush: int = 0  # a flush after so many writes, 0: none
    count: int = 0  # requests, each a step further, instead of running for a time
    step: int = 0  # bytes between them; 0: bs
    cache: int = 0  # bytes of the map's cache, 0: default


@dataclass(frozen=True)
class Row:
    name: str
    level: int
    what: str
    workload: W
    contenders: tuple
    goals: tuple = ()
    image: str = "mapped"
    medium: str = "tmpfs"
    fresh: bool = False  # a new image for each measurement
    metric: str = "rate"  # or "median_us", of which less is better
    full: bool = False
    size_mib: int = 512


KIB, MIB = 1024, 1024 * 1024
# A step that visits every cluster of 64 KiB once, in no order that a disk or a cache could guess.
ODD_CLUSTERS = 65536 * 2731
# The same for blocks of 4 KiB.
ODD_BLOCKS = 4096 * 33331

ENGINE = ("engine", "engine-raw", "fio-raw", "qemu-img", "qemu-img-threads")
EMPTY = ("engine", "engine-raw", "fio-raw")
FUSE = ("fuse-file", "fuse-loop", "fuse-raw-file", "fuse-raw-loop", "fuse-null-file", "qsd-fuse",
        "qemu-nbd-socket", "kernel-loop")
UBLK = ("ublk", "ublk-raw", "ublk-null", "qemu-nbd", "kernel-loop")

ROWS = [
    # ---- 1: the engine ----
    Row("1-randread-4k", 1, "mapped 4k random read, depth 64", W(), ENGINE,
        (("engine", "fio-raw", 0.9), ("engine", "engine-raw", 0.9), ("engine", "qemu-img", 1.8))),
    Row("1-randwrite-4k", 1, "mapped 4k random write, depth 64", W("write"), ENGINE,
        (("engine", "fio-raw", 0.9), ("engine", "engine-raw", 0.9), ("engine", "qemu-img", 2.0))),
    Row("1-randrw-4k", 1, "mapped 4k random, half reads half writes", W("mix"),
        ("engine", "engine-raw", "fio-raw"), (("engine", "fio-raw", 0.9),)),
    Row("1-cached-randread-4k", 1, "mapped 4k random read through the page cache, depth 64", W(),
        ("engine-cached", "engine-raw-cached", "fio-raw-cached", "qemu-img-cached"),
        (("engine-cached", "fio-raw-cached", 0.9), ("engine-cached", "engine-raw-cached", 0.9),
         ("engine-cached", "qemu-img-cached", 1.8)), medium="disk"),
    Row("1-cached-two-queues", 1, "the same with two queues on two cores", W(queues=2),
        ("engine-cached", "engine-cached-1", "engine-raw-cached", "fio-raw-cached"),
        (("engine-cached", "engine-cached-1", 1.7),), medium="disk"),
    Row("1-latency-4k", 1, "mapped 4k random read, depth 1 (median latency)", W(depth=1),
        ENGINE[:3], (("engine", "fio-raw", 0.9),), metric="median_us"),
    Row("1-rw-64k", 1, "mapped 64k random, half reads half writes", W("mix", 64 * KIB),
        ("engine", "engine-raw", "fio-raw"), (("engine", "engine-raw", 0.95),), full=True),
    Row("1-rw-512k", 1, "mapped 512k random, half reads half writes", W("mix", 512 * KIB),
        ("engine", "engine-raw", "fio-raw"), (("engine", "engine-raw", 0.95),), full=True),
    Row("1-randread-4k-empty", 1, "4k random read of an empty image, depth 64", W(), EMPTY + ("qemu-img",),
        (("engine", "engine-raw", 0.9), ("engine", "qemu-img", 1.8)), image="empty", full=True),
    Row("1-randrw-4k-empty", 1, "4k random on an empty image, half reads half writes", W("mix"),
        EMPTY, (("engine", "engine-raw", 0.5),), image="empty", fresh=True, full=True),
    Row("1-rw-64k-empty", 1, "64k random on an empty image, half reads half writes", W("mix", 64 * KIB),
        EMPTY, (("engine", "engine-raw", 0.5),), image="empty", fresh=True, full=True),
    Row("1-rw-512k-empty", 1, "512k random on an empty image, half reads half writes", W("mix", 512 * KIB),
        EMPTY, (("engine", "engine-raw", 0.5),), image="empty", fresh=True, full=True),
    Row("1-seqread-1m", 1, "mapped 1M sequential read, depth 16",
        W(bs=MIB, depth=16, random=False), ENGINE[:4], (("engine", "engine-raw", 0.9),), full=True),
    Row("1-seqwrite-1m-empty", 1, "1M sequential write to an empty image, depth 16",
        W("write", MIB, 16, False, count=2048), ENGINE[:4],
        (("engine", "engine-raw", 0.9), ("engine", "fio-raw", None), ("engine", "qemu-img", 1.0)), image="empty",
        fresh=True, size_mib=2048),
    Row("1-randwrite-4k-empty", 1, "4k write to each cluster of an empty image, in no order",
        W("write", count=16384, step=ODD_CLUSTERS, random=False),
        ("engine", "engine:mapped", "qemu-img", "engine-raw"),
        (("engine", "engine:mapped", 0.5), ("engine", "qemu-img", 1.0)), image="empty", fresh=True,
        size_mib=1024),
    Row("1-disk-randread-4k", 1, "mapped 4k random read on a disk, direct, depth 64", W(), ENGINE,
        (("engine", "fio-raw", 0.9), ("engine", "engine-raw", 0.9)), medium="disk"),
    Row("1-disk-randwrite-4k", 1, "mapped 4k random write on a disk, direct, depth 64", W("write"), ENGINE,
        (("engine", "fio-raw", 0.9), ("engine", "engine-raw", 0.9)), medium="disk", full=True),
    Row("1-fsync-1", 1, "4k write and a flush each, mapped, on a disk", W("write", depth=1, flush=1),
        ENGINE[:4], (("engine", "engine-raw", 0.95), ("engine", "fio-raw", 0.95)), medium="disk"),
    Row("1-fsync-8", 1, "4k writes, a flush after 8, mapped, on a disk", W("write", depth=8, flush=8),
        ENGINE[:4], (("engine", "engine-raw", 0.95),), medium="disk", full=True),
    Row("1-fsync-64", 1, "4k writes, a flush after 64, mapped, on a disk", W("write", flush=64),
        ENGINE[:4], (("engine", "engine-raw", 0.95),), medium="disk", full=True),
    Row("1-fsync-1-empty", 1, "4k write and a flush each, allocating, on a disk",
        W("write", depth=1, flush=1, count=400, step=ODD_CLUSTERS, random=False),
        ("engine", "engine:mapped", "qemu-img"), (("engine", "qemu-img", 1.0),), image="empty", fresh=True,
        medium="disk"),
    Row("1-cold-map", 1, "4k random read of a mapped 1 TiB image with a map cache of 1 MiB",
        W(cache=MIB), ("engine", "engine:mapped", "qemu-img"), (("engine", "qemu-img", 1.0),), image="1t",
        full=True),
    Row("1-chain-8", 1, "4k random read through a chain of 8, mapped at the bottom", W(),
        ("engine", "engine:chain-1", "qemu-img"), (("engine", "engine:chain-1", 0.9),), image="chain-8",
        full=True),
    Row("1-chain-64", 1, "4k random read through a chain of 64, mapped at the bottom", W(),
        ("engine", "engine:chain-1", "qemu-img"), (("engine", "engine:chain-1", 0.9),), image="chain-64"),
    Row("1-deflate-seq", 1, "4k sequential read, compressed with deflate", W(random=False, depth=16),
        ("engine", "qemu-img"), (("engine", "qemu-img", 5),), image="deflate"),
    Row("1-deflate-seq-64k", 1, "64k sequential read, compressed with deflate",
        W(bs=64 * KIB, random=False, depth=16), ("engine", "qemu-img"), (("engine", "qemu-img", 1.6),),
        image="deflate"),
    Row("1-deflate-rand", 1, "64k random read, compressed with deflate", W(bs=64 * KIB, depth=16),
        ("engine", "qemu-img"), (("engine", "qemu-img", 1.6),), image="deflate"),
    Row("1-zstd-seq", 1, "4k sequential read, compressed with zstd", W(random=False, depth=16),
        ("engine", "qemu-img"), (("engine", "qemu-img", 5),), image="zstd", full=True),
    Row("1-zstd-seq-64k", 1, "64k sequential read, compressed with zstd",
        W(bs=64 * KIB, random=False, depth=16), ("engine", "qemu-img"), (("engine", "qemu-img", 1.0),),
        image="zstd"),
    Row("1-zstd-rand", 1, "64k random read, compressed with zstd", W(bs=64 * KIB, depth=16),
        ("engine", "qemu-img"), (("engine", "qemu-img", 1.0),), image="zstd"),
    Row("1-luks-randread", 1, "mapped 4k random read, encrypted with LUKS", W(),
        ("engine", "engine:mapped"), (("engine", "engine:mapped", None),), image="luks"),
    Row("1-luks-randwrite", 1, "mapped 4k random write, encrypted with LUKS", W("write"),
        ("engine", "engine:mapped"), (("engine", "engine:mapped", None),), image="luks"),
    Row("1-luks-rw-512k", 1, "mapped 512k random, half reads half writes, encrypted with LUKS",
        W("mix", 512 * KIB, 16), ("engine", "engine:mapped"), (("engine", "engine:mapped", None),),
        image="luks", full=True),
    Row("1-snapshot-write", 1, "4k write to each cluster after a snapshot (copy on write)",
        W("write", count=4096, step=ODD_CLUSTERS, random=False), ("engine", "qemu-img"),
        (("engine", "qemu-img", 1.0),), image="snapshot", fresh=True),
    Row("1-extended-l2-empty", 1, "4k write to each subcluster of an empty image with extended L2",
        W("write", count=16384, step=ODD_BLOCKS, random=False), ("engine", "qemu-img"),
        (("engine", "qemu-img", 1.0),), image="extended-l2", fresh=True),

    # ---- 2: FUSE, natively ----
    Row("2-randread-4k", 2, "mapped 4k random read, depth 64", W(), FUSE,
        (("fuse-file", "qsd-fuse", 2), ("fuse-file", "qemu-nbd-socket", 1), ("fuse-file", "fuse-raw-file", 0.95))),
    Row("2-randwrite-4k", 2, "mapped 4k random write, depth 64", W("write"), FUSE,
        (("fuse-file", "qsd-fuse", 2), ("fuse-file", "qemu-nbd-socket", 1), ("fuse-file", "fuse-raw-file", 0.95))),
    Row("2-randrw-4k", 2, "mapped 4k random, half reads half writes", W("mix"), FUSE,
        (("fuse-file", "qsd-fuse", 2),), full=True),
    Row("2-latency-4k", 2, "mapped 4k random read, depth 1 (median latency)", W(depth=1),
        ("fuse-file", "fuse-raw-file", "qsd-fuse", "qemu-nbd-socket"),
        (("fuse-file", "qsd-fuse", 1), ("fuse-file", "fuse-raw-file", 0.95)), metric="median_us", full=True),
    Row("2-rw-64k", 2, "mapped 64k random, half reads half writes", W("mix", 64 * KIB, 16), FUSE,
        (("fuse-file", "qsd-fuse", 1), ("fuse-file", "fuse-raw-file", 0.95)), full=True),
    Row("2-rw-512k", 2, "mapped 512k random, half reads half writes", W("mix", 512 * KIB, 16), FUSE,
        (("fuse-file", "fuse-raw-file", 0.95),), full=True),
    Row("2-randwrite-4k-empty", 2, "4k random write to an empty image, depth 64", W("write"),
        ("fuse-file", "qsd-fuse", "qemu-nbd-socket"), (("fuse-file", "qsd-fuse", 2),), image="empty",
        fresh=True),
    Row("2-luks-randread", 2, "mapped 4k random read, encrypted with LUKS", W(),
        ("fuse-file", "qsd-fuse", "qemu-nbd-socket"), (("fuse-file", "qsd-fuse", 1),), image="luks"),
    Row("2-luks-randwrite", 2, "mapped 4k random write, encrypted with LUKS", W("write"),
        ("fuse-file", "qsd-fuse", "qemu-nbd-socket"), (("fuse-file", "qsd-fuse", 1),), image="luks"),
    Row("2-discard", 2, "discard of everything, mapped (whole discards in a second)", W("discard"),
        ("fuse-file", "fuse-loop", "qsd-fuse", "kernel-loop"), (("fuse-file", "qsd-fuse", 1),), fresh=True,
        size_mib=256),

    # ---- 3: ublk, in a guest kernel ----
    Row("3-randread-4k", 3, "mapped 4k random read, depth 64", W(), UBLK,
        (("ublk", "ublk-raw", 0.95), ("ublk", "qemu-nbd", 6)), size_mib=256),
    Row("3-randwrite-4k", 3, "mapped 4k random write, depth 64", W("write"), UBLK,
        (("ublk", "ublk-raw", 0.95), ("ublk", "qemu-nbd", 6)), size_mib=256),
    Row("3-randrw-4k", 3, "mapped 4k random, half reads half writes", W("mix"), UBLK,
        (("ublk", "ublk-raw", 0.95), ("ublk", "qemu-nbd", 6)), size_mib=256),
    Row("3-rw-512k", 3, "mapped 512k random, half reads half writes", W("mix", 512 * KIB), UBLK,
        (("ublk", "ublk-raw", 0.95), ("ublk", "qemu-nbd", 6)), size_mib=256),
    Row("3-randwrite-4k-empty", 3, "4k random write to an empty image, depth 64", W("write"),
        ("ublk", "ublk:mapped", "ublk-raw", "qemu-nbd"),
        (("ublk", "ublk:mapped", 0.5), ("ublk", "qemu-nbd", 10)), image="empty", fresh=True, size_mib=256),
    Row("3-randread-4k-empty", 3, "4k random read of an empty image, depth 64", W(),
        ("ublk", "ublk-raw", "qemu-nbd"), (("ublk", "ublk-raw", 0.95), ("ublk", "qemu-nbd", 6)), image="empty",
        size_mib=256, full=True),
    Row("3-randrw-4k-empty", 3, "4k random on an empty image, half reads half writes", W("mix"),
        ("ublk", "ublk-raw", "qemu-nbd"), (("ublk", "qemu-nbd", 6),), image="empty", fresh=True, size_mib=256,
        full=True),
    Row("3-rw-64k", 3, "mapped 64k random, half reads half writes", W("mix", 64 * KIB), UBLK,
        (("ublk", "ublk-raw", 0.95),), size_mib=256, full=True),
    Row("3-rw-64k-empty", 3, "64k random on an empty image, half reads half writes", W("mix", 64 * KIB),
        ("ublk", "ublk-raw", "qemu-nbd"), (("ublk", "qemu-nbd", 6),), image="empty", fresh=True, size_mib=256,
        full=True),
    Row("3-rw-512k-empty", 3, "512k random on an empty image, half reads half writes",
        W("mix", 512 * KIB), ("ublk", "ublk-raw", "qemu-nbd"), (("ublk", "qemu-nbd", 6),), image="empty",
        fresh=True, size_mib=256, full=True),
    Row("3-seqwrite-1m-empty", 3, "1M sequential write to an empty image, depth 16",
        W("write", MIB, 16, False, count=256), ("ublk", "ublk-raw", "qemu-nbd"),
        (("ublk", "ublk-raw", 0.9),), image="empty", fresh=True, size_mib=256, full=True),
    Row("3-latency-4k", 3, "mapped 4k random read, depth 1 (median latency)", W(depth=1),
        ("ublk", "ublk-raw", "ublk-null", "qemu-nbd"), (("ublk", "ublk-raw", 0.95), ("ublk", "qemu-nbd", 1)),
        size_mib=256, metric="median_us", full=True),
    Row("3-discard", 3, "discard of everything, mapped (whole discards in a second)", W("discard"),
        ("ublk", "ublk-raw", "qemu-nbd", "kernel-loop"), (("ublk", "qemu-nbd", 1),), fresh=True, size_mib=256,
        full=True),
]
