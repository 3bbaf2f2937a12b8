# SPDX-License-Identifier: MIT
# lib.sh: what the differential tests share; sourced by each of them.
#
# A case makes two equal images, runs one random script through our engine (qcow2-io) on the one and
# through qemu-io on the other, and compares in every way there is: our dump with qemu's, qemu reading our
# image, us reading qemu's, qemu-img check on both. Then the images change hands: qemu-io goes on with
# ours and we with qemu's, and all is compared again.
#
# SEED=n replays a run; the seed is printed. KEEP=1 keeps the folder of a failed case.

set -u
. "$(dirname "${BASH_SOURCE[0]}")/../lib/bitmaps.sh"
BUILD=${BUILD:-$(cd "${0%/*}/../.." && pwd)/build}
QCOW2_IO=$BUILD/tests/tools/qcow2-io
MAKE_SCRIPT=$BUILD/tests/diff/make-script
PROGRAM=$BUILD/ublk-qcow2
: "${SEED:=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}"
STEP_TIMEOUT=${STEP_TIMEOUT:-60}

# sanitizers: a finding must not look like a failed command
export ASAN_OPTIONS=${ASAN_OPTIONS:-exitcode=99} UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

# In memory where there is room, since nothing here is about a disk's syncs; DIFF_ON_DISK for O_DIRECT.
diff_root=${TMPDIR:-/tmp}
diff_free_kib=$(df --output=avail /dev/shm 2>/dev/null | tail -n 1)
[ -z "${DIFF_ON_DISK:-}" ] && [ "${diff_free_kib:-0}" -gt 1048576 ] && diff_root=/dev/shm
diff_dir=$(mktemp -d "$diff_root/qcow2-diff.XXXXXX") || exit 1
diff_cases=0
diff_label=
trap 'diff_end' EXIT
trap 'exit 1' INT TERM

diff_end() {
	local status=$?
	if [ $status -ne 0 ] && [ "${KEEP:-0}" = 1 ]; then
		echo "kept: $diff_dir"
	else
		rm -rf "$diff_dir"
	fi
	exit $status
}

diff_fail() {
	echo "FAILED: case: $diff_label"
	echo "  $*"
	for f in "$diff_dir"/out.*; do
		[ -s "$f" ] && { echo "--- ${f##*/}"; head -n 20 "$f"; }
	done
	echo "replay: SEED=$SEED KEEP=1 $0 $DIFF_ARGS"
	exit 1
}

# Position-dependent data for write -s, so that data that lands in the wrong place is noticed.
diff_patterns() {
	local i
	mkdir -p "$diff_dir/p"
	for i in 0 1 2 3 4 5 6 7; do
		seq -f "%08.0f pattern $i of the differential tests, line" $((i * 100000)) \
			$((i * 100000 + 20000)) | head -c 1048576 >"$diff_dir/p/p$i"
	done
}

# How qemu-img and qemu-io are told of a qcow2 image: in ${Q[@]}, before and with the name. With DIFF_KEY set,
# a file, the image is encrypted; its passphrase is in that file.
as_qcow2() {
	Q=(-f qcow2 "$1")
	[ -z "${DIFF_KEY:-}" ] || Q=(--object "secret,id=s,file=$DIFF_KEY" --image-opts
		"driver=qcow2,file.filename=$1,encrypt.key-secret=s")
}

# qemu-img's create fails now and then where the time that a process takes is measured roughly (it counts
# how fast it hashes, for seconds of which quick-kdf spares us most).
create_qcow2() {
	local options=$1 n
	shift
	[ -z "${DIFF_KEY:-}" ] || options+=,encrypt.key-secret=s
	for ((n = 0; n < 20; n++)); do
		env ${DIFF_KEY:+"LD_PRELOAD=$BUILD/tests/tools/quick-kdf.so"} qemu-img create -q -f qcow2 ${DIFF_KEY:+--object secret,id=s,file=$DIFF_KEY} -o "$options" \
			"$@" 2>"$diff_dir/out.create" && rm "$diff_dir/out.create" && return
		[ -n "${DIFF_KEY:-}" ] || break
	done
	diff_fail "qemu-img create"
}

# run_ours IMAGE SCRIPT SHADOW [qcow2-io option...]
run_ours() {
	local image=$1 script=$2 shadow=$3 status
	shift 3
	timeout "$STEP_TIMEOUT" "$QCOW2_IO" ${DIFF_KEY:+-k "$DIFF_KEY"} --shadow "$shadow" "$@" "$image" <"$script" \
		>"$diff_dir/out.ours" 2>&1
	status=$?
	sed -i '/^ublk-qcow2: .*: recovered: /d' "$diff_dir/out.ours"
	[ $status -eq 0 ] && [ ! -s "$diff_dir/out.ours" ] ||
		diff_fail "qcow2-io $* on ${image##*/} with ${script##*/}: exit status $status"
}

# After an abort: what the dead process had in its ring keeps the file, and so its locks, for a moment.
wait_unlocked() {
	local n
	for ((n = 0; n < 200; n++)); do
		qemu-img info -f qcow2 "$1" >/dev/null 2>&1 && return
		sleep 0.05
	done
	diff_fail "${1##*/} stays locked"
}

run_qemu() {
	local image=$1 script=$2
	as_qcow2 "$image"
	timeout "$STEP_TIMEOUT" qemu-io -t unsafe "${Q[@]}" <"$script" >"$diff_dir/out.qemu" 2>&1 ||
		diff_fail "qemu-io on ${image##*/}: exit status $?"
	# It prints nothing but prompts when all commands succeed.
	sed -i -e 's/qemu-io> //g' -e '/^$/d' "$diff_dir/out.qemu"
	[ ! -s "$diff_dir/out.qemu" ] || diff_fail "qemu-io on ${image##*/} with ${script##*/}"
}

check_image() {
	as_qcow2 "$1"
	qemu-img check -q "${Q[@]}" >"$diff_dir/out.check" 2>&1 ||
		diff_fail "qemu-img check ${1##*/}: exit status $? ($2)"
}

# The bitmaps of DIFF_BITMAPS, each "NAME GRANULARITY [OPTION]" as qemu-img's bitmap --add takes them, one a line.
diff_bitmaps_add() { # IMAGE
	local name granularity option
	[ -n "${DIFF_BITMAPS:-}" ] || return 0
	while read -r name granularity option; do
		# shellcheck disable=SC2086
		as_qcow2 "$1"
		qemu-img bitmap --add -g "$granularity" $option "${Q[@]}" "$name" || diff_fail "qemu-img bitmap $name"
	done <<<"$DIFF_BITMAPS"
}

diff_bitmaps_of() { # IMAGE
	as_qcow2 "$1"
	bitmaps_dump "$diff_dir/nbd.sock" "$1" "${Q[@]}"
}

diff_bitmaps_compare() { # WHEN
	[ -n "${DIFF_BITMAPS:-}" ] || return 0
	diff_bitmaps_of "$diff_dir/ours.qcow2" >"$diff_dir/out.bitmaps" 2>&1 || diff_fail "cannot read our bitmaps ($1)"
	diff_bitmaps_of "$diff_dir/twin.qcow2" >"$diff_dir/twin.bitmaps" 2>&1 || diff_fail "cannot read qemu's bitmaps ($1)"
	diff "$diff_dir/out.bitmaps" "$diff_dir/twin.bitmaps" >"$diff_dir/out.diff" ||
		diff_fail "the dirty bitmaps differ ($1)"
	mv "$diff_dir/out.bitmaps" "$diff_dir/ours.bitmaps"
}

# With NO_DUMP set, which large disks need, reading is left to the reads in the scripts.
compare_all() {
	local a=$diff_dir/ours.qcow2 b=$diff_dir/twin.qcow2
	rm -f "$diff_dir"/ours.raw "$diff_dir"/twin.raw
	check_image "$a" "$1"
	check_image "$b" "$1"
	as_qcow2 "$b"
	if [ -n "${DIFF_KEY:-}" ]; then
		qemu-img compare -q "${Q[@]}" "${Q[3]/"$b"/"$a"}" >"$diff_dir/out.compare" 2>&1
	else
		qemu-img compare -f qcow2 -F qcow2 -q "$a" "$b" >"$diff_dir/out.compare" 2>&1
	fi ||
		diff_fail "qemu-img compare of our image and qemu's ($1)"
	qemu-img convert -O raw "${Q[@]}" "$diff_dir/twin.raw" || diff_fail "qemu-img convert"
	[ -z "${NO_DUMP:-}" ] || return 0
	timeout "$STEP_TIMEOUT" "$QCOW2_IO" ${DIFF_KEY:+-k "$DIFF_KEY"} -r -c "dump $diff_dir/ours.raw" "$a" >"$diff_dir/out.dump" 2>&1 ||
		diff_fail "dump of our image"
	cmp "$diff_dir/ours.raw" "$diff_dir/twin.raw" >"$diff_dir/out.cmp" 2>&1 ||
		diff_fail "our image read by us differs from qemu's read by qemu ($1)"
	[ "${DIFF_DATA_FILE:-}" != raw ] || cmp -n "$(stat -c %s "$diff_dir/ours.raw")" "$diff_dir/ours.raw" "$diff_dir/ours.data" >"$diff_dir/out.cmp" 2>&1 ||
		diff_fail "the raw data file alone is not the disk ($1)"
	timeout "$STEP_TIMEOUT" "$QCOW2_IO" ${DIFF_KEY:+-k "$DIFF_KEY"} -r -c "dump $diff_dir/ours.raw" "$b" >"$diff_dir/out.dump" 2>&1 ||
		diff_fail "dump of qemu's image"
	cmp "$diff_dir/ours.raw" "$diff_dir/twin.raw" >"$diff_dir/out.cmp" 2>&1 ||
		diff_fail "qemu's image read by us differs from what qemu reads ($1)"
	diff_bitmaps_compare "$1"
}

# diff_chain: makes the layers of DIFF_CHAIN, the lowest first, each "raw SIZE", "qcow2 SIZE OPTIONS" or
# "compressed SIZE OPTIONS", one a line, with random contents; prints the options that make qemu-img create put an image on top.
diff_chain() {
	local format size options n=0 below= compressed
	while read -r format size options; do
		compressed=
		[ $format != compressed ] || { compressed=1 format=qcow2; }
		rm -f "$diff_dir/base$n"
		# shellcheck disable=SC2086
		qemu-img create -q -f "$format" ${options:+-o "$options"} $below "$diff_dir/base$n" "$size" ||
			diff_fail "qemu-img create of layer $n"
		size=$(qemu-img info --output=json -f "$format" "$diff_dir/base$n" | jq '."virtual-size"')
		"$MAKE_SCRIPT" -p "$diff_dir/p" -m 300000 -D $((SEED * 1000 + 500 + diff_cases * 10 + n)) \
			"$size" 4096 40 >"$diff_dir/base.script"
		timeout "$STEP_TIMEOUT" qemu-io -t unsafe -f "$format" "$diff_dir/base$n" <"$diff_dir/base.script" \
			>"$diff_dir/out.base" 2>&1 || diff_fail "qemu-io on layer $n"
		rm "$diff_dir/out.base"
		if [ $compressed ]; then
			# shellcheck disable=SC2086
			(cd "$diff_dir" && qemu-img convert -c -f qcow2 -O qcow2 ${options:+-o "$options"} \
				${below/-b/-B} base$n base.new && mv base.new base$n) || diff_fail "qemu-img convert"
		fi
		below="-b base$n -F $format"
		n=$((n + 1))
	done <<<"$DIFF_CHAIN"
	printf '%s' "$below"
}

# diff_compressed OPTIONS SIZE: makes twin.qcow2 full of clusters that qemu-img compressed.
diff_compressed() {
	local script=$diff_dir/base.script plain=$diff_dir/plain.raw
	rm -f "$plain"
	qemu-img create -q -f raw "$plain" "$2" || diff_fail "qemu-img create"
	"$MAKE_SCRIPT" -p "$diff_dir/p" -m 900000 -D $((SEED * 1000 + 500 + diff_cases)) \
		"$(stat -c %s "$plain")" 4096 120 >"$script"
	timeout "$STEP_TIMEOUT" qemu-io -t unsafe -f raw "$plain" <"$script" >"$diff_dir/out.base" 2>&1 ||
		diff_fail "qemu-io on the source"
	rm "$diff_dir/out.base"
	qemu-img convert -c -f raw -O qcow2 -o "$1" "$plain" "$diff_dir/twin.qcow2" ||
		diff_fail "qemu-img convert -c"
	rm "$plain"
}

# The option that gives image NAME a data file of its own; QEMU looks for a relative name in its own folder.
diff_data_option() {
	case ${DIFF_DATA_FILE:-} in
	'') ;;
	raw) printf ',data_file=%s,data_file_raw=on' "$diff_dir/$1.data" ;;
	*) printf ',data_file=%s' "$diff_dir/$1.data" ;;
	esac
}

# diff_case QEMU-IMG-OPTIONS SIZE CLUSTER OPS MAXLEN [qcow2-io option...]
# With OWN_CREATE set our image is made by our own create; with DIFF_CHAIN it has a backing chain; with
# DIFF_COMPRESSED it starts full of compressed clusters; with DIFF_DATA_FILE (raw or yes) its data are in
# another file; with DIFF_BITMAPS it has dirty bitmaps; with DIFF_SNAPSHOT an internal snapshot shares its clusters; with NO_DISCARD nothing is discarded.
diff_case() {
	local options=$1 size=$2 cluster=$3 ops=$4 max_len=$5 seed below shadow=zero
	local kinds=${NO_DISCARD:+-D}
	shift 5
	diff_cases=$((diff_cases + 1))
	diff_label="seed $SEED, case $diff_cases: $options, $size bytes, $ops operations, qcow2-io $*"
	[ -d "$diff_dir/p" ] || diff_patterns
	rm -f "$diff_dir"/*.qcow2 "$diff_dir"/out.* "$diff_dir"/*.data
	below=
	[ -z "${DIFF_CHAIN:-}" ] || below=$(diff_chain) || { echo "$below"; exit 1; }
	if [ -n "${DIFF_COMPRESSED:-}" ]; then
		diff_compressed "$options" "$size"
	else
		# shellcheck disable=SC2086
		create_qcow2 "$options$(diff_data_option twin)" $below "$diff_dir/twin.qcow2" "$size"
	fi
	diff_bitmaps_add "$diff_dir/twin.qcow2"
	if [ -n "${DIFF_SNAPSHOT:-}" ]; then
		as_qcow2 "$diff_dir/twin.qcow2"
		[ -n "${DIFF_KEY:-}" ] || Q=("$diff_dir/twin.qcow2") # no -f here
		qemu-img snapshot -c before "${Q[@]}" || diff_fail "qemu-img snapshot"
	fi
	if [ -n "${OWN_CREATE:-}" ]; then
		# shellcheck disable=SC2086
		"$PROGRAM" create ${DIFF_KEY:+--key-file "$DIFF_KEY"} -o "$options$(diff_data_option ours)" $below "$diff_dir/ours.qcow2" "$size" \
			>"$diff_dir/out.create" 2>&1 ||
			diff_fail "create"
		check_image "$diff_dir/ours.qcow2" created
	elif [ -n "${DIFF_DATA_FILE:-}" ]; then
		# shellcheck disable=SC2086
		create_qcow2 "$options$(diff_data_option ours)" $below "$diff_dir/ours.qcow2" "$size"
		diff_bitmaps_add "$diff_dir/ours.qcow2"
	else
		cp --sparse=always "$diff_dir/twin.qcow2" "$diff_dir/ours.qcow2"
	fi
	size=$(( (size + 511) / 512 * 512 ))
	# shellcheck disable=SC2086

	seed=$((SEED * 1000 + diff_cases * 2))
	"$MAKE_SCRIPT" $kinds -p "$diff_dir/p" -m "$max_len" -A $seed "$size" "$cluster" "$ops" >"$diff_dir/a.ours"
	"$MAKE_SCRIPT" $kinds -p "$diff_dir/p" -m "$max_len" $seed "$size" "$cluster" "$ops" >"$diff_dir/a.qemu"
	if [ "$below" ] || [ -n "${DIFF_COMPRESSED:-}" ]; then
		shadow=$diff_dir/start.raw
		as_qcow2 "$diff_dir/twin.qcow2"
		qemu-img convert -O raw "${Q[@]}" "$shadow" || diff_fail "qemu-img convert"
	fi
	run_ours "$diff_dir/ours.qcow2" "$diff_dir/a.ours" "$shadow" "$@"
	run_qemu "$diff_dir/twin.qcow2" "$diff_dir/a.qemu"
	compare_all "first round"

	seed=$((seed + 1))
	ops=$((ops / 2))
	"$MAKE_SCRIPT" $kinds -p "$diff_dir/p" -m "$max_len" -A $seed "$size" "$cluster" "$ops" >"$diff_dir/b.ours"
	"$MAKE_SCRIPT" $kinds -p "$diff_dir/p" -m "$max_len" $seed "$size" "$cluster" "$ops" >"$diff_dir/b.qemu"
	run_ours "$diff_dir/twin.qcow2" "$diff_dir/b.ours" "$diff_dir/twin.raw" "$@"
	run_qemu "$diff_dir/ours.qcow2" "$diff_dir/b.qemu"
	compare_all "images exchanged"
}

# The disk size that makes an image of that cluster size interesting: several L2 tables and refcount
# blocks where that is affordable, never a multiple of the cluster.
diff_size() {
	local cluster=$1
	case $cluster in
	512) echo $((4 * 1048576 + 5 * 512)) ;; # the refcount table grows, with wide refcounts
	1024 | 2048) echo $((10 * 1048576 + 512)) ;;
	4096) echo $((12 * 1048576 + 3 * 512)) ;;
	*) echo $((24 * 1048576 + cluster / 2 + 512)) ;;
	esac
}

diff_max_len() {
	if [ "$1" -le 2048 ]; then echo 196608
	elif [ "$1" -le 65536 ]; then echo 524288
	else echo $((3 * $1)); fi
}

DIFF_ARGS=$*
echo "SEED=$SEED"
