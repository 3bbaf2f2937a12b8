# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib.sh: what the tests of the ublk front end share. They run targets in the foreground with the test
# programs ublk-serve and ublkdev-try, in $SCRATCH.
set -euo pipefail
export LC_ALL=C
TOOLS=$BUILD/tests/tools
SERVE=$TOOLS/ublk-serve
TRY=$TOOLS/ublkdev-try
server=

skip() {
	echo "SKIP: $*"
	exit 77
}
left_out() { echo "LEFT OUT: $*"; } # what a test that goes on does not try on this kernel
fail() {
	echo "FAIL: $*"
	tail -n 20 "$SCRATCH/out" "$SCRATCH/err" 2>/dev/null || :
	exit 1
}

[[ -c /dev/ublk-control ]] || skip "no /dev/ublk-control"
[[ $EUID == 0 ]] || skip "needs root"

# start PROGRAM [ARG...]: runs it until it says its device; then $server is its pid, $device the path,
# $id the number
start() {
	local n
	: >"$SCRATCH/out"
	"$@" >"$SCRATCH/out" 2>"$SCRATCH/err" &
	server=$!
	for ((n = 0; n < 1200; n++)); do
		[[ -s $SCRATCH/out ]] && break
		kill -0 "$server" 2>/dev/null || break
		sleep 0.05
	done
	read -r device <"$SCRATCH/out" || fail "$* did not start"
	[[ -b $device ]] || fail "$* says its device is '$device'"
	id=${device#/dev/ublkb}
}

# wait_server: its exit status is in $status
wait_server() {
	status=0
	wait "$server" || status=$?
	server=
}

# stop: ends it by SIGTERM; it must end well, and nothing of the device may be left
stop() {
	kill -TERM "$server"
	wait_server
	[[ $status == 0 ]] || fail "it ended with $status"
	gone
}

gone() {
	[[ ! -e /dev/ublkb$id && ! -e /dev/ublkc$id ]] || fail "device $id is still there"
}

queue() { cat "/sys/block/ublkb$id/queue/$1"; }

# expect WHAT IS WANTED
expect() { [[ $2 == "$3" ]] || fail "$1 is '$2', not '$3'"; }

# random I/O in the background until the device goes; its pid is in $fio
background_io() {
	fio --name=io --filename="$device" --allow_file_create=0 --ioengine=io_uring --direct=1 --rw=randrw --bs=4k \
		--iodepth=32 --runtime=300 --time_based >"$SCRATCH/fio.log" 2>&1 &
	fio=$!
	local n before
	before=$(awk '{ print $1 + $5 }' "/sys/block/ublkb$id/stat")
	for ((n = 0; n < 600; n++)); do # until it really flows
		sleep 0.1
		(($(awk '{ print $1 + $5 }' "/sys/block/ublkb$id/stat") > before + 200)) && return
	done
	fail "no I/O flows"
}
