# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib.sh: rounds of real power cuts. Sourced by the tests of this folder.
#
# Program and image are inside a virtual machine, the image in a file system on the machine's own
# disk, /dev/vda. In each round tests/tools/durable.c writes numbered blocks with fsync to the device,
# fio writes beside them, and QEMU is killed. With it goes all that the guest's kernel had in memory:
# its page cache, what its file system had not written, the program's metadata. The disk is
# tests/tools/volatile-disk.c's and is killed next: with it goes what was written but not flushed, as
# from a disk with a volatile cache. So a block that was fsynced is lost if any of it (data, the image's
# metadata, the file's own size and extents) was not brought to the disk by a sync of the program's.
# The guest's kernel is told not to write back by itself for an hour, and ext4 not to commit, so that
# next to nothing but a sync brings it there.
#
# What was acknowledged is known on this side of the cut: durable's STATE is in a folder of this host's
# that the guest shares, and each change is written through to it at once.
#
# The next boot mounts the file system (its journal is replayed), checks the image (leaks at most),
# and reads all blocks twice: as qemu-img reads the image and as the program does. It then goes on to
# the next round, so that N rounds are N + 1 boots.
#
# A test runs on this host, sources this file and calls run_rounds; `lib.sh guest ...` is the guest's
# side. That it can fail, the test `lost-syncs` shows.

rounds_blocks=4096 # 16 MiB of a device of 128 MiB; fio has the half from 64 MiB on

# ---- the guest's side ----

guest_prepare() {
	echo 0 >/proc/sys/vm/dirty_writeback_centisecs
	echo 360000 >/proc/sys/vm/dirty_expire_centisecs
	wait_for 20 test -b /dev/vda || fail "the machine has no disk"
	mkdir -p /run/w/disk
	local options=
	[[ $(blkid -o value -s TYPE /dev/vda) == ext4 ]] && options=commit=3600
	mount ${options:+-o "$options"} /dev/vda /run/w/disk
	on_exit "umount /run/w/disk"
	image=/run/w/disk/disk.qcow2
}

guest_verify() { # ROUND
	dmesg | grep -E '(EXT4-fs|XFS).*vda.*(recovery|[Rr]ecovery)' ||
		fail "the file system was not recovered from its journal: was the power cut?"
	check_image leaks "$image"
	qemu-img dd -f qcow2 -O raw bs=1M count=16 if="$image" of=/run/w/head.raw
	truncate -s 16M /run/w/head.raw # dd may end before blocks that were never allocated
	"$tools/durable" verify /run/w/head.raw "$state" 0 $rounds_blocks ||
		fail "round $1: lost blocks, as qemu-img reads it"
	rm /run/w/head.raw
	attach "$image"
	"$tools/durable" verify "$device" "$state" 0 $rounds_blocks ||
		fail "round $1: lost blocks, as the device reads it"
	detach
	check_image leaks "$image"
}

guest_load() { # ROUND CACHE PRELOAD
	echo "guest: round $1, --cache $2${3:+, with $3}"
	local load
	if [[ $3 ]]; then
		LD_PRELOAD=$3 attach --cache "$2" "$image"
	else
		attach --cache "$2" "$image"
	fi
	fio --name=load --filename="$device" --direct=1 --ioengine=io_uring --iodepth=8 --rw=randwrite \
		--bs=4k --offset=64M --size=64M --time_based --runtime=600 --eta=never >/run/w/load.out 2>&1 &
	load=$!
	sectors_before=$(sectors_written)
	"$tools/durable" write "$device" "$state" 0 $rounds_blocks "$RANDOM" 600 &
	# shellcheck disable=SC2317
	load_under_way() { (($(sectors_written) > sectors_before + 500)) && kill -0 "$load"; }
	wait_for 120 load_under_way || fail "fio does not get going"
	echo "guest: under load"
	wait
	fail "the load ended by itself"
}

# guest VERIFY LOAD CACHE PRELOAD: verifies the one round and begins the other; - for none
guest() {
	export UBLK_QCOW2_RUN_DIR=/run/w/state
	state=$PWD/shared/state
	mkdir -p /run/w/cwd
	cd /run/w/cwd
	. "$TOP/tests/lib/e2e.sh"
	guest_prepare
	[[ $1 == - ]] || guest_verify "$1"
	[[ $2 == - ]] || guest_load "$2" "$3" "$4"
	echo "guest: done"
}
if [[ ${BASH_SOURCE[0]} == "$0" && ${1:-} == guest ]]; then
	shift
	guest "$@"
	exit
fi

# ---- the host's side ----

# shellcheck disable=SC2034
FRONTEND=none # of this side
. "$TOP/tests/lib/e2e.sh"
[[ $(uname -m) == x86_64 ]] || skip "the virtual machine is for x86-64"
[[ -e /dev/fuse ]] || skip "no /dev/fuse on this host"
for need in qemu-system-x86_64 busybox qemu-img fio; do
	command -v $need >/dev/null || skip "no $need on this host"
done

"$TOP/tests/vm/kernel" >/dev/null || skip "no kernel for the virtual machine"

machine='' disk=''
plug_disk() {
	mkdir -p plug
	"$tools/volatile-disk" plug disk.raw >>disk.log 2>&1 &
	disk=$!
	wait_for 20 test -e plug/disk || fail "the disk is not there: $(<disk.log)"
}
# Whatever of it is not flushed is gone.
unplug_disk() {
	[[ $disk ]] || return 0
	kill -KILL "$disk" 2>/dev/null
	wait "$disk" 2>/dev/null || true
	disk=
	umount plug
}
on_exit unplug_disk # after the machine

# boot VERIFY LOAD CACHE PRELOAD: boots the machine, which does that; what it says goes to guest.log
boot() {
	: >guest.log
	plug_disk
	VM_CONSOLE=1 "$TOP/tests/vm/run" -m 1024M -t "$boot_seconds" -w shared -d "$PWD/plug/disk" \
		bash "$TOP/tests/e2e/power/lib.sh" guest "$@" >guest.log 2>console.log &
	machine=$!
}
# shellcheck disable=SC2016
on_exit 'if [[ $machine ]]; then kill -TERM $machine 2>/dev/null; wait $machine; fi'
boot_seconds=420

guest_says() { grep -qF "guest: $1" guest.log || ! kill -0 "$machine" 2>/dev/null; }
# How many blocks have a version that was acknowledged, and how many versions that were.
acked_blocks() { od -An -v -t u4 -w8 shared/state | awk '$2 { n++; sum += $2 } END { print n + 0, sum + 0 }'; }
acked_enough() { # VERSIONS
	local blocks versions
	read -r blocks versions < <(acked_blocks)
	((versions >= $1)) || ! kill -0 "$machine" 2>/dev/null
}
machine_ended() { # its status is in $status
	status=0
	wait "$machine" || status=$?
	machine=
	unplug_disk
	sed 's/^/  | /' guest.log
}

# Cuts the power once the load has run for a while, at a moment of chance's.
cut_power() { # ROUND
	local blocks versions before
	wait_for "$boot_seconds" guest_says "under load" || fail "round $1: no load"
	read -r blocks before < <(acked_blocks)
	wait_for 120 acked_enough $((before + 150)) || fail "round $1: too few writes are acknowledged"
	sleep "$((RANDOM % 3)).$((RANDOM % 10))"
	if ! kill -0 "$machine"; then
		machine_ended
		tail -n 30 console.log
		fail "round $1: the machine ended by itself, status $status"
	fi
	kill -TERM "$machine" # which kills QEMU at once, with SIGKILL
	machine_ended
	((status == 143)) || fail "round $1: status $status of a machine that was killed"
	read -r blocks versions < <(acked_blocks)
	echo "round $1: power cut; $((versions - before)) writes acknowledged under load; $blocks blocks have one"
}

new_disk() { # FILE-SYSTEM CLUSTER-SIZE
	rm -rf disk.raw shared files
	mkdir files shared
	qemu-img create -q -f qcow2 -o cluster_size="$2" files/disk.qcow2 128M
	truncate -s 1G disk.raw
	case $1 in
	ext4) mkfs.ext4 -q -F -d files disk.raw ;;
	xfs)
		printf '/dev/null\n0 0\nd--755 0 0\ndisk.qcow2 ---644 0 0 %s\n$\n' "$PWD/files/disk.qcow2" >proto
		mkfs.xfs -q -p proto disk.raw
		;;
	esac
	truncate -s $((rounds_blocks * 8)) shared/state
}

# run_rounds "CACHE..." [PRELOAD]: a round with each, and one more boot that verifies the last. That
# boot's exit status is in $status, what it said in guest.log.
run_rounds() {
	local cache round=0 verify=-
	for cache in $1; do
		boot "$verify" $((++round)) "$cache" "${2:-}"
		cut_power "$round"
		verify=$round
	done
	boot "$verify" - - ""
	wait_for "$boot_seconds" guest_says "done" || fail "the last boot does not end"
	machine_ended
}
