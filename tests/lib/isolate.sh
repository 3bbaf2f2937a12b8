# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# isolate.sh: runs a program in an empty folder under a time limit and finds what it leaves behind.
# Part of tests/run.

# Pids of the processes that carry a mark in their environment.
marked_processes() {
	grep -slzxF "TEST_MARK=$1" /proc/[0-9]*/environ | cut -d / -f 3
}

# Loop devices whose file lies under a folder.
loops_under() {
	local file backing
	for file in /sys/block/loop*/loop/backing_file; do
		[[ -e $file ]] && read -r backing 2>/dev/null <"$file" || continue
		[[ $backing == "$1"/* ]] && printf '/dev/%s\n' "$(cut -d / -f 4 <<<"$file")"
	done
}

# Mount points under a folder, the last one first.
mounts_under() { awk -v dir="$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac; }

ublk_devices() { ls -d /dev/ublkb* /dev/ublkc* 2>/dev/null; }

# Devices that were not there before. What wrote to a device that was gone has made a file in its place.
ublk_devices_since() {
	local item
	for item in $(ublk_devices); do
		[[ $'\n'$1$'\n' == *$'\n'"$item"$'\n'* ]] || echo "$item"
	done
}

# Says what a test left behind, and removes it as far as that is possible.
sweep() {
	local mark=$1 scratch=$2 before=$3 found=1 item n
	# a daemon that was told to go may need a moment, a loop device that was let go of as well
	for ((n = 0; n < 100 * ${TEST_SLOW:-1}; n++)); do
		[[ $(marked_processes "$mark")$(loops_under "$scratch")$(ublk_devices_since "$before") ]] || break
		sleep 0.1
	done
	for item in $(marked_processes "$mark"); do
		echo "left behind: process $item: $(tr '\0' ' ' <"/proc/$item/cmdline" 2>/dev/null)"
		found=0
		kill -KILL "$item" 2>/dev/null
	done
	# after a kill the device may still be there although nobody serves it
	for item in "$scratch"/.run/*.json; do
		[[ -e $item ]] || continue
		echo "left behind: attached device: $(tr -d '\n' <"$item")"
		found=0
		UBLK_QCOW2_RUN_DIR=$scratch/.run timeout 60 "$BUILD/ublk-qcow2" del --all --force
	done
	for item in $(mounts_under "$scratch"); do
		echo "left behind: mount $item"
		found=0
		umount "$item" 2>/dev/null || umount -l "$item"
	done
	for item in $(loops_under "$scratch"); do
		echo "left behind: loop device $item"
		found=0
		losetup -d "$item"
	done
	for item in $(ublk_devices_since "$before"); do
		echo "left behind: $item"
		found=0
		[[ ! -f $item ]] || rm -f "$item" # it is in the way of the next one
	done
	return $found
}

# isolate NAME TIMEOUT PROGRAM [ARG...]: the program's exit status; 124 or 137 past the time limit, 99
# if it would have passed or been skipped but left something behind.
isolate() {
	local name=$1 limit=$2 scratch mark status before
	shift 2
	if [[ $MACHINE == host ]]; then # not /tmp, which may be a tmpfs without O_DIRECT
		scratch=$(mktemp -d /var/tmp/ublk-qcow2.XXXXXX) || return 98
	else
		scratch=$(mktemp -d /run/w/ublk-qcow2.XXXXXX) || return 98
	fi
	chmod 711 "$scratch" # some tests become other users
	mark=${scratch##*/}
	before=$(ublk_devices)
	(
		cd "$scratch" || exit 98
		export SCRATCH=$scratch TMPDIR=$scratch TEST=$name TEST_MARK=$mark MACHINE
		export UBLK_QCOW2_RUN_DIR=$scratch/.run # devices of tests at the same time do not meet
		exec timeout --kill-after=5 "$limit" "$@" </dev/null 8>&-
	)
	status=$?
	if sweep "$mark" "$scratch" "$before" && [[ $status == 0 || $status == 77 ]]; then
		status=99
	fi
	rm -rf --one-file-system "$scratch" 2>/dev/null
	return $status
}
