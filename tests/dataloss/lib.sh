# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib.sh: for the tests of data-loss bugs that other implementations of qcow2 had, one test for each.
set -uo pipefail
export LC_ALL=C
IO=$BUILD/tests/tools/qcow2-io

fail() {
	echo "FAILED: $*"
	exit 1
}

# create IMAGE SIZE [OPTION]...: an image of qemu-img's
create() {
	local image=$1 size=$2
	shift 2
	qemu-img create -q -f qcow2 "$@" "$image" "$size" || fail "qemu-img create $image"
}

# ours IMAGE COMMAND...: through our engine
ours() {
	local image=$1 args=() command
	shift
	for command; do args+=(-c "$command"); done
	timeout 60 "$IO" "${args[@]}" "$image" || fail "qcow2-io on $image: $*"
}

# qemu IMAGE COMMAND...: through QEMU's, which also compares what "read -P" reads
qemu() {
	local image=$1 args=() command
	shift
	for command; do args+=(-c "$command"); done
	timeout 60 qemu-io -t unsafe -f qcow2 "${args[@]}" "$image" >qemu.out 2>&1 &&
		! grep -q 'verification failed' qemu.out || { cat qemu.out; fail "qemu-io on $image: $*"; }
}

# clean IMAGE: without corruption and leaks
clean() { qemu-img check -q -f qcow2 "$1" || fail "qemu-img check $1: $?"; }

# caught MUTANT: the simulation finds the bug if it is put in; the same workloads without it are right
caught() {
	timeout 120 "$BUILD/tests/sim/sim-mutants" mutants --mutant "$1" --states 60000 >mutant.out 2>&1 ||
		{ cat mutant.out; fail "$1 was not found"; }
	grep "$1" mutant.out || fail "$1 was not tried"
}
