# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib.sh: what the workloads share. Sourced by them, in their own empty folder.
#
# A workload runs on a device of FRONTEND: of itself ublk where this kernel has it, else FUSE with a loop
# device. On ublk its daemon is killed meanwhile; FUSE has no recovery, so there it goes undisturbed.
if [[ -z ${FRONTEND:-} ]]; then
	FRONTEND=$([[ -e /dev/ublk-control ]] && echo ublk || echo fuse)
fi
. "$TOP/tests/lib/e2e.sh"

need() { # COMMAND PACKAGE
	command -v "$1" >/dev/null || skip "no $1 on this host: apt-get install $2"
}

recover_options=()
# kill_often PID KILLS PAUSE: while that process works on $device, its daemon is killed so many times, as
# far as it lasts; every second time its supervisor too, and `recover` takes over. How often, is in $killed.
# (Not on FUSE, which has no recovery.)
kill_often() {
	local work=$1 kills=$2 pause=$3
	killed=0
	[[ $FRONTEND == ublk ]] || return 0
	sleep 0.3 # on a fast machine the work may be done before the pause is over
	while ((killed < kills)); do
		((killed == 0)) || sleep "$pause"
		kill -0 "$work" 2>/dev/null || break
		if ((++killed % 2 == 0)); then
			kill_all
			recover "${recover_options[@]}"
		else
			kill_worker
		fi
	done
}
# under_kills PID KILLS PAUSE: the same, at least once; waits for the process, whose status it returns.
under_kills() {
	local status=0
	kill_often "$@"
	wait "$1" || status=$?
	[[ $FRONTEND != ublk ]] || ((killed > 0)) || fail "the work was done before the daemon could be killed"
	echo "$FRONTEND: the daemon was killed $killed times under the work, which ended with status $status"
	return "$status"
}

# On the raw file that workloads are compared with: the kernel's loop device, no program of ours.
raw_device() { # FILE SIZE
	truncate -s "$2" "$1"
	device=$(losetup --find --show "$1")
	backing=$(backing_file)
	on_exit "losetup --detach $device 2>/dev/null"
}
raw_detach() {
	losetup --detach "$device"
	cleanups=()
}

# Nothing that is read afterwards comes from memory.
forget_cache() { echo 3 >/proc/sys/vm/drop_caches; }
