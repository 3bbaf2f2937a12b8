# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# bitmaps.sh: what dirty bitmaps say, to QEMU. Sourced.

# bitmaps_dump SOCKET IMAGE [ARG...]: the list of the bitmaps as qemu-img has it, and for each a line with its name
# and the ranges, [from, to), that are dirty. ARG...: how qemu-nbd is told of the image; by default "-f qcow2 IMAGE".
bitmaps_dump() {
	local socket=$1 image=$2 name names=() args=() pid i status=0
	shift 2
	(($#)) || set -- -f qcow2 "$image"
	mapfile -t names < <(jq -r '."format-specific".data.bitmaps[]?.name' \
		<<<"$(qemu-img info --output=json -f qcow2 "$image")")
	qemu-img info --output=json -f qcow2 "$image" | jq -c '."format-specific".data.bitmaps'
	((${#names[@]})) || return 0
	for name in "${names[@]}"; do args+=(-B "$name"); done
	rm -f "$socket" "$socket.pid"
	timeout 60 qemu-nbd -r -t "${args[@]}" -k "$socket" --pid-file "$socket.pid" --fork "$@" || return
	pid=$(<"$socket.pid")
	for name in "${names[@]}"; do
		# a bit that is set is shown as what has no data
		printf '%s ' "$name"
		timeout 60 qemu-img map --output=json --image-opts \
			"driver=nbd,server.type=unix,server.path=$socket,x-dirty-bitmap=qemu:dirty-bitmap:$name" |
			jq -c '[.[] | select(.data == false) | [.start, .start + .length]]' || status=1
	done
	kill "$pid"
	for ((i = 0; i < 3000; i++)); do # it holds the image's locks
		# dead it may be before init takes notice
		grep -q '^State:.[^Z]' "/proc/$pid/status" 2>/dev/null || return $status
		sleep 0.02
	done
	return 1
}
