# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib.sh: what the tests of the FUSE front end share. They run the front end by itself, with the
# test program fuse-serve, in $SCRATCH.
set -euo pipefail
export LC_ALL=C
SERVE=$BUILD/tests/tools/fuse-serve
TOOLS=$BUILD/tests/tools
run_dir=$SCRATCH/run
mkdir -p "$run_dir"
server=

skip() {
	echo "SKIP: $*"
	exit 77
}
fail() {
	echo "FAIL: $*"
	cat "$SCRATCH/out" "$SCRATCH/err" 2>/dev/null || :
	exit 1
}

need_fuse() {
	[[ -e /dev/fuse ]] || skip "no /dev/fuse"
	[[ $EUID == 0 ]] || skip "needs root"
}
need_loop() {
	need_fuse
	[[ -e /dev/loop-control ]] || skip "no /dev/loop-control"
}

# start ARG...: starts fuse-serve; its pid is in $server, the path of the device in $device
start() {
	: >"$SCRATCH/out"
	"$SERVE" --debug --run-dir "$run_dir" "$@" >"$SCRATCH/out" 2>"$SCRATCH/err" &
	server=$!
	local n
	for ((n = 0; n < 1200; n++)); do
		read -r device <"$SCRATCH/out" && [[ $device ]] && return 0
		kill -0 $server 2>/dev/null || fail "fuse-serve $* did not start"
		sleep 0.05
	done
	fail "fuse-serve $* is not ready"
}

# stop: ends it; fails if that is not clean
stop() {
	kill -TERM "$server"
	wait "$server" || fail "fuse-serve ended with $?"
	server=
	grep -qx stopped "$SCRATCH/out" || fail "fuse-serve did not stop in order"
	leftovers && fail "something was left behind"
	return 0
}

# leftovers: whether a mount, a loop device or a folder of a device is still there
leftovers() {
	grep -F " $run_dir/" /proc/self/mountinfo && return 0
	grep -lF "$run_dir/" /sys/block/loop*/loop/backing_file 2>/dev/null && return 0
	ls -d "$run_dir"/fuse/[0-9]* 2>/dev/null
}

# bound DEVICE: whether a loop device is still on a file of ours ("/": it is no longer mounted); its number may be
# another's a moment later
bound() {
	local file
	file=$(cat "/sys/block/${1#/dev/}/loop/backing_file" 2>/dev/null) || return
	[[ $file == "$run_dir"/* || $file == / ]]
}

# busy: what the front end says, 1 or 0
busy() {
	local before now n
	before=$(grep -c ^busy "$SCRATCH/out" || :)
	kill -USR1 "$server"
	for ((n = 0; n < 1200; n++)); do
		now=$(grep -c ^busy "$SCRATCH/out" || :)
		if ((now > before)); then
			grep ^busy "$SCRATCH/out" | tail -n 1 | cut -d ' ' -f 2
			return 0
		fi
		sleep 0.05
	done
	fail "no answer whether it is busy"
}

cleanup() {
	local n
	umount "$SCRATCH/mnt" 2>/dev/null || :
	[[ $server ]] || return 0
	kill -TERM "$server" 2>/dev/null || return 0
	for ((n = 0; n < 150; n++)); do
		kill -0 "$server" 2>/dev/null || return 0
		sleep 0.1
	done
	kill -KILL "$server" 2>/dev/null || :
}
trap cleanup EXIT
