# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# cli.sh: what the tests of the program's commands share. Source it first; the working directory is
# the test's own. The folder of state is there as well, so that tests do not see each other's devices.
set -uo pipefail
export LC_ALL=C
# A copy, as other users may not be allowed to look into the source tree.
mkdir -p .program
cp "${BUILD:-$PWD/build}/ublk-qcow2" .program/
U=$PWD/.program/ublk-qcow2
export UBLK_QCOW2_RUN_DIR=$PWD/state
export LSAN_OPTIONS=suppressions=$TOP/tests/lib/lsan.supp:print_suppressions=0
failed=0
trap '((failed == 0)) || exit 1' EXIT # whatever a test ends with

fail() {
	echo "FAILED: $*"
	failed=1
}

# The last words of a test.
finish() {
	"$U" del --force --all 2>/dev/null
	exit $failed
}

# run STATUS COMMAND...: runs it within a minute and compares the exit status; its output is in $out and
# $err.
run() {
	local want=$1 got
	shift
	timeout $((60 * ${TEST_SLOW:-1})) "$@" >.out 2>.err
	got=$?
	out=$(cat .out)
	err=$(cat .err)
	[[ $got == "$want" ]] || fail "'$*' ended with $got, not $want: $out $err"
	[[ $got == "$want" ]]
}

# refused STATUS TEXT COMMAND...: fails with one line on standard error that holds TEXT, and says
# nothing on standard output.
refused() {
	local want=$1 text=$2
	shift 2
	run "$want" "$@" || return
	[[ -z $out ]] || fail "'$*' printed '$out'"
	[[ $(wc -l <.err) == 1 ]] || fail "'$*' said, not in one line: $err"
	[[ $err == "ublk-qcow2: "* ]] || fail "'$*': no 'ublk-qcow2: ' in front: $err"
	[[ $err == *"$text"* ]] || fail "'$*' does not say '$text' but: $err"
}

# equal A B WHAT
equal() {
	[[ $1 == "$2" ]] && return
	fail "$3 differs:"
	diff <(printf '%s\n' "$1") <(printf '%s\n' "$2")
}

# eventually COMMAND...: within a minute (emulation is slow) it is true.
eventually() {
	local end=$((SECONDS + 60 * ${TEST_SLOW:-1}))
	while ((SECONDS <= end)); do
		"$@" && return 0
		sleep 0.05
	done
	fail "not within a minute: $*"
	return 1
}

# For tests that run on either front end: FRONTEND is one, or empty for what the host has.
FRONTEND=${FRONTEND:-}
ADD=("$U" add)
[[ $FRONTEND ]] && ADD+=(--frontend "$FRONTEND")

# Whether a device of ours is there. The node of a loop device stays, and its number may be another's
# a moment later.
present() {
	if [[ $1 == /dev/loop* ]]; then
		[[ $(losetup --noheadings --output BACK-FILE "$1" 2>/dev/null) == "$PWD"/* ]]
	else
		[[ -e $1 ]]
	fi
}

# What is left in the folder of state, apart from what stays there.
left_over() { find state -mindepth 1 ! -path state/lock ! -path state/fuse ! -path state/fuse/.lock 2>/dev/null; }

# field KEY [NUMBER]: a field of the device that is listed there, counted from 0
field() { "$U" list --json | jq -r ".[${2:-0}].$1"; }
devices() { "$U" list --json | jq length; }
