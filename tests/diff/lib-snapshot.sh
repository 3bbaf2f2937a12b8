# SPDX-License-Identifier: MIT
# lib-snapshot.sh: differential cases with internal snapshots; sourced behind lib.sh.
#
# A case goes in rounds. Each writes the same random requests here and, through qemu-io, to the twin, with
# an operation on a snapshot in between: here by the engine that is just running, there by qemu-img.
# After each round the disks are equal, so are all snapshots, both checkers find nothing, and the images
# may change hands.

# Bytes of the disk and of every snapshot.
compare_snapshots() {
	local a=$diff_dir/ours.qcow2 b=$diff_dir/twin.qcow2 name
	check_image "$a" "$1"
	check_image "$b" "$1"
	"$PROGRAM" check "$a" >"$diff_dir/out.check" 2>&1 || diff_fail "our check of our image ($1)"
	rm "$diff_dir/out.check"
	qemu-img compare -f qcow2 -F qcow2 -q "$a" "$b" >"$diff_dir/out.compare" 2>&1 ||
		diff_fail "qemu-img compare of our image and qemu's ($1)"
	[ "$(snapshot_names "$a")" = "$(snapshot_names "$b")" ] || diff_fail "other snapshots ($1)"
	for name in $(snapshot_names "$a"); do
		qemu-img convert -f qcow2 -l "snapshot.name=$name" -O raw "$b" "$diff_dir/twin.$name" ||
			diff_fail "qemu-img convert of $name"
		qemu-img convert -f qcow2 -l "snapshot.name=$name" -O raw "$a" "$diff_dir/ours.$name" ||
			diff_fail "qemu-img convert of our $name"
		cmp "$diff_dir/ours.$name" "$diff_dir/twin.$name" >"$diff_dir/out.cmp" 2>&1 ||
			diff_fail "snapshot $name is another one ($1)"
		timeout "$STEP_TIMEOUT" "$QCOW2_IO" --snapshot "$name" -c "dump $diff_dir/ours.$name" "$a" \
			>"$diff_dir/out.dump" 2>&1 || diff_fail "dump of $name ($1)"
		cmp "$diff_dir/ours.$name" "$diff_dir/twin.$name" >"$diff_dir/out.cmp" 2>&1 ||
			diff_fail "snapshot $name read by us differs ($1)"
	done
	qemu-img convert -f qcow2 -O raw "$b" "$diff_dir/twin.raw" || diff_fail "qemu-img convert"
	rm -f "$diff_dir"/out.*
}

snapshot_names() {
	qemu-img info --output=json -f qcow2 "$1" | jq -r '.snapshots[]?.name'
}

# snapshot_case OPTIONS SIZE CLUSTER OPS MAXLEN ROUNDS OPERATIONS [qcow2-io option...]
# OPERATIONS: words "create:NAME", "apply:NAME", "delete:NAME", one for each round. With SWAP set the images
# change hands after each.
snapshot_case() {
	local options=$1 size=$2 cluster=$3 ops=$4 max_len=$5 operations=$6 seed word what name round=0
	local a=$diff_dir/ours.qcow2 b=$diff_dir/twin.qcow2 shadow=zero
	shift 6
	diff_cases=$((diff_cases + 1))
	diff_label="seed $SEED, case $diff_cases: $options, $size bytes, $operations, qcow2-io $*"
	[ -d "$diff_dir/p" ] || diff_patterns
	rm -f "$diff_dir"/*.qcow2 "$diff_dir"/out.* "$diff_dir"/twin.* "$diff_dir"/ours.*
	qemu-img create -q -f qcow2 -o "$options" "$b" "$size" || diff_fail "qemu-img create"
	cp --sparse=always "$b" "$a"
	size=$(( (size + 511) / 512 * 512 ))
	for word in $operations; do
		what=${word%%:*} name=${word#*:}
		seed=$((SEED * 1000 + diff_cases * 20 + round))
		round=$((round + 1))
		{
			"$MAKE_SCRIPT" -p "$diff_dir/p" -m "$max_len" -A $seed "$size" "$cluster" "$ops"
			echo "snapshot $what $name"
			[ $what != apply ] || echo "forget 0 $size"
			"$MAKE_SCRIPT" -p "$diff_dir/p" -m "$max_len" -A "${seed}7" "$size" "$cluster" $((ops / 2))
		} >"$diff_dir/script.ours"
		"$MAKE_SCRIPT" -p "$diff_dir/p" -m "$max_len" $seed "$size" "$cluster" "$ops" >"$diff_dir/a.qemu"
		"$MAKE_SCRIPT" -p "$diff_dir/p" -m "$max_len" "${seed}7" "$size" "$cluster" $((ops / 2)) \
			>"$diff_dir/b.qemu"
		run_ours "$a" "$diff_dir/script.ours" "$shadow" "$@"
		run_qemu "$b" "$diff_dir/a.qemu"
		case $what in
		create) qemu-img snapshot -c "$name" "$b" ;;
		apply) qemu-img snapshot -a "$name" "$b" ;;
		delete) qemu-img snapshot -d "$name" "$b" ;;
		esac >"$diff_dir/out.snapshot" 2>&1 || diff_fail "qemu-img snapshot $word"
		run_qemu "$b" "$diff_dir/b.qemu"
		compare_snapshots "after $word"
		shadow=$diff_dir/twin.raw
		if [ "${SWAP:-}" ]; then
			mv "$a" "$diff_dir/other"
			mv "$b" "$a"
			mv "$diff_dir/other" "$b"
		fi
	done
}
