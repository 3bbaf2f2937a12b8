# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# e2e.sh: what the end-to-end tests share. Sourced by them, in their own empty folder.
#
# FRONTEND (ublk by default) is the front end under test: never "auto", so that a test cannot fall back
# unseen. A device that a test attaches is taken away when the test ends, however it ends.
set -euo pipefail
FRONTEND=${FRONTEND:-ublk}
program=$BUILD/ublk-qcow2
tools=$BUILD/tests/tools

fail() {
	echo "FAILED: $*"
	exit 1
}
skip() {
	echo "SKIP: $*"
	exit 77
}
# What a test that goes on does not try on this kernel.
left_out() { echo "LEFT OUT: $*"; }
# Runs a command that must fail with this exit status.
must_fail() { # STATUS COMMAND...
	local want=$1 got=0
	shift
	"$@" || got=$?
	((got == want)) || fail "exit status $got instead of $want: $*"
}

[[ $EUID == 0 || ${ROOTLESS:-} ]] || skip "needs root"
case $FRONTEND in
ublk) [[ -e /dev/ublk-control ]] || skip "no /dev/ublk-control on this kernel" ;;
fuse) [[ -e /dev/fuse ]] || skip "no /dev/fuse on this host" ;;
esac

# Emulation is slow: counts and sizes are divided by 8 there, and multiplied by 8 with `make test-all`.
scale() {
	local n=$1
	[[ ${VM_ACCEL:-} == tcg ]] && n=$((n / 8))
	[[ ${TEST_ALL:-} ]] && n=$((n * 8))
	echo $((n > 0 ? n : 1))
}

attached=()
mounted=()
cleanups=()
on_exit() { cleanups=("$*" "${cleanups[@]}"); } # a command for when the devices are gone
at_exit() {
	local status=$? item
	set +e
	trap - EXIT
	for item in "${mounted[@]}"; do mountpoint -q "$item" && umount "$item"; done
	for item in "${attached[@]}"; do [[ $item ]] && timeout 30 "$program" del --force "$item"; done
	for item in "${cleanups[@]}"; do eval "$item"; done
	exit "$status"
}
trap at_exit EXIT

# attach ARG...: `add` with the front end under test; the device is in $device, its number in $id,
# its daemon's process in $pid
attach() {
	device=$(timeout 60 "$program" add --frontend "$FRONTEND" "$@") || fail "add $*"
	attached+=("$device")
	[[ -b $device || " $* " == *" --no-loop "* ]] || fail "add printed '$device', which is no block device"
	id=$(device_field id)
	pid=$(device_field pid)
	[[ -d /proc/$pid ]] || fail "list names process $pid, which is not there"
	backing=$(backing_file)
}
# What a loop device is on: its number may be somebody else's as soon as it is free.
backing_file() { cat "/sys/block/${device#/dev/}/loop/backing_file" 2>/dev/null || true; }
# device_field KEY: of $device, from `list --json`
device_field() {
	"$program" list --json | tr -d ' \n' | tr '{' '\n' | grep -F "\"device\":\"$device\"" |
		sed "s/.*\"$1\":\"\\{0,1\\}\\([^\",}]*\\).*/\\1/"
}
# Options for attach: zero copy, where this kernel has it (by default images on tmpfs are served without).
zero_copy() {
	local probe
	if probe=$(timeout 60 "$program" add --frontend ublk --target null --size 1M --data-path zero-copy 2>/dev/null); then
		timeout 60 "$program" del --wait 10 "$probe"
		echo "--data-path zero-copy"
	fi
}
detach() {
	timeout 60 "$program" del "$device" || fail "del $device"
	forget
}
# A device in use is taken away with --force only.
detach_busy() {
	must_fail 1 timeout 60 "$program" del "$device"
	device_is_gone && fail "$device is gone although del refused"
	timeout 60 "$program" del --force "$device" || fail "del --force $device"
	forget
}
forget() {
	local n
	for n in "${!attached[@]}"; do [[ ${attached[n]} == "$device" ]] && attached[n]=; done
	wait_for 10 device_is_gone || fail "$device is still there after del"
}
device_is_gone() {
	case $device in
	/dev/loop*)
		local now
		now=$(backing_file)
		[[ $now != "$backing" && $now != / ]] # "/": on a FUSE file that is gone
		;;
	*) [[ ! -e $device ]] ;;
	esac
}
mount_device() { # FOLDER [OPTION...]
	local folder=$1
	shift
	mkdir -p "$folder"
	mount "$@" "$device" "$folder"
	mounted+=("$PWD/$folder")
}

# wait_for SECONDS COMMAND...: until it succeeds, within so many seconds of a quiet machine: four times as long on
# a busy one, longer under emulation, and as TEST_SLOW says
patience=$((4 * ${TEST_SLOW:-1}))
[[ ${VM_ACCEL:-} == tcg ]] && patience=$((patience * 3))
wait_for() {
	local end=$((SECONDS + $1 * patience))
	shift
	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}

# Kills the daemon of $device as the kernel's out-of-memory killer would, and its supervisor before it,
# so that nobody takes over; waits until they are gone. I/O may still land until the image's locks are
# released.
kill_daemon() {
	local supervisor
	supervisor=$(device_field supervisor)
	if [[ $supervisor =~ ^[0-9]+$ ]]; then
		kill -KILL "$supervisor"
		wait_for 20 not_running "$supervisor" || fail "process $supervisor does not end after SIGKILL"
	fi
	kill -KILL "$pid"
	wait_for 20 not_running "$pid" || fail "process $pid does not end after SIGKILL"
}
# Kills the daemon alone; its supervisor starts another one, which serves when this returns.
kill_worker() {
	local before=$pid
	kill -KILL "$pid"
	wait_for 120 worker_changed "$before" || fail "no new daemon for $device after process $before was killed"
	pid=$(device_field pid)
}
worker_changed() { [[ $(device_field state) == live && $(device_field pid) != "$1" ]]; }
not_running() { [[ ! -d /proc/$1 ]] || grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }

# Writes to $device in the background until the device fails; stop_load waits for that and asserts it.
start_load() {
	timeout 320 fio --name=load --filename="$device" --allow_file_create=0 --direct=1 --ioengine=io_uring --iodepth=32 \
		--rw=randwrite --bs=4k --size=256M --time_based --runtime=300 --eta=never >load.out 2>&1 &
	load=$!
	sectors_before=$(sectors_written)
	wait_for 30 load_is_going || fail "fio does not get going"
}
sectors_written() { awk '{ print $7 }' "/sys/block/${device#/dev/}/stat"; }
load_is_going() { (($(sectors_written) > sectors_before + 2000)); }
# Waits until so much more has been written to $device: whoever writes is in the middle of it.
wait_written() { # SECTORS [PID]: or until that process has ended
	local goal=$(($(sectors_written) + $1))
	written_or_ended() { (($(sectors_written) >= goal)) || { [[ ${2:-} ]] && not_running "$2"; }; }
	wait_for 30 written_or_ended "$@" || fail "nobody writes $1 sectors to $device"
}
# The threads of a process, but those of io_uring's own, which come and go: they run the kernel's code alone. One
# that has ended meanwhile is none.
threads_of() { # PID
	local comm
	for comm in /proc/"$1"/task/*/comm; do
		[[ $(cat "$comm" 2>/dev/null) == iou-* || ! -e $comm ]] || dirname "$comm"
	done
}
load_fails() {
	local status=0
	wait "$load" || status=$?
	((status != 0 && status != 124 && status != 137)) ||
		fail "fio did not notice that its device is gone (status $status)"
}

# fio with crc on $device in the background, pass after pass: each writes, and reads back what it wrote. The load is
# under way when load_verified returns; end_verified lets it end with a pass, and asserts that it met nothing.
load_verified() { # FIO-OPTION...
	rm -f stop
	verified_passes "$@" &
	load=$!
	wait_written 2000 "$load"
}
verified_passes() {
	local passes=0
	until [[ -e stop ]]; do
		timeout 300 fio --name=load --filename="$device" --allow_file_create=0 --direct=1 --ioengine=io_uring --iodepth=32 \
			--rw=randwrite --bs=4k --randrepeat=0 --verify=crc32c --verify_fatal=1 --eta=never "$@" >load.out 2>&1 || return
		((++passes))
	done
	echo "$passes passes of fio verified"
}
end_verified() {
	: >stop
	wait "$load" || { cat load.out; fail "fio met an error or other bytes"; }
}
still_verified() { kill -0 "$load" 2>/dev/null || { cat load.out; fail "$1: fio met an error or other bytes"; }; }

# After a kill: the device must go by del, and the image must become free.
delete_dead() {
	timeout 60 "$program" del "$device" || fail "del of a dead device"
	forget
}

check_image() { # [leaks] IMAGE: no errors; leaks only if allowed
	local leaks='' status=0
	[[ $1 == leaks ]] && leaks=1 && shift
	qemu-img check "$1" >check.out 2>&1 || status=$?
	[[ $status == 0 || ($leaks && $status == 3) ]] && return
	cat check.out
	fail "qemu-img check $1: status $status"
}

# fio on $device with the rest of the options: direct, through io_uring. What it found goes to the log.
run_fio() {
	local status=0
	timeout 300 fio --name=test --filename="$device" --direct=1 --ioengine=io_uring --iodepth=32 \
		--group_reporting --output-format=normal --output=fio.out --eta=never --fallocate=none \
		"$@" || status=$?
	grep -E '^ *(read|write|trim):|verify|error' fio.out | sed "s/^/fio $* : /" || true
	((status == 0)) || { cat fio.out; fail "fio $*: status $status"; }
}
# The five runs of the set: random writes, reads and both at 4k, sequential reads and writes at 64k and
# 512k, on SIZE of the device, MIB of I/O in each. Each block that is read has its crc checked: randread
# reads what randwrite left (the same seed gives the same blocks).
run_fio_set() { # SIZE MIB
	local size=$1 io=$2
	run_fio --rw=randwrite --bs=4k --size="$size" --io_size="${io}M" --verify=crc32c --do_verify=0 --randseed=7
	run_fio --rw=randread --bs=4k --size="$size" --io_size="${io}M" --verify=crc32c --randseed=7
	run_fio --rw=randrw --bs=4k --size="$size" --io_size="${io}M" --verify=crc32c
	run_fio --rw=rw --bs=64k --size="$size" --io_size="$((io * 4))M" --verify=crc32c
	run_fio --rw=rw --bs=512k --size="$size" --io_size="$((io * 4))M" --verify=crc32c
}

# The same set for an image, on qemu-nbd and on this program; each reads what it wrote itself.
run_fio_set_on_nbd() { # IMAGE SIZE MIB
	[[ -b /dev/nbd0 ]] || modprobe nbd 2>/dev/null || skip "this kernel has no nbd"
	qemu-nbd --connect=/dev/nbd0 --format=qcow2 --cache=none --aio=io_uring --discard=unmap "$1"
	on_exit "qemu-nbd --disconnect /dev/nbd0 >/dev/null"
	wait_for 20 nbd_has_size || fail "/dev/nbd0 does not appear"
	device=/dev/nbd0
	run_fio_set "$2" "$3"
	qemu-nbd --disconnect /dev/nbd0 >/dev/null
	cleanups=()
	wait_for 20 not_locked "$1" || fail "qemu-nbd does not let go of $1"
	check_image "$1"
}
nbd_has_size() { (($(blockdev --getsize64 /dev/nbd0) > 0)); }
# Whether nobody has the image open for writing, by QEMU's locks.
not_locked() { qemu-img info "$1" >/dev/null 2>&1; }

# ---- recovery ----

# Kills the daemon and its supervisor; the device waits for `recover`.
kill_all() {
	kill_daemon
	wait_for 20 is_quiesced || fail "$device is $(device_field state), not quiesced, after its daemons were killed"
}
is_quiesced() { [[ $(device_field state) == quiesced ]]; }
recover() { # OPTION...
	timeout 60 "$program" recover "$@" "$device" || fail "recover $device"
	pid=$(device_field pid)
	[[ -d /proc/$pid ]] || fail "after recover, list names process $pid, which is not there"
}
