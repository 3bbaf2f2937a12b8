# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# lib.sh: what the tests of malformed images share; sourced by each of them.
#
# The good images are those of good.sh; make-bad spoils copies of them. good/ and bad/ are in the test's own
# folder, one bad image at a time.

set -u
TOP=${TOP:-$(cd "${0%/*}/../.." && pwd)}
BUILD=${BUILD:-$TOP/build}
PROGRAM=$BUILD/ublk-qcow2
QCOW2_IO=$BUILD/tests/tools/qcow2-io
MAKE_BAD=$BUILD/tests/badimages/make-bad
BOUNDED=$BUILD/tests/tools/bounded
LIMIT_S=5
LIMIT_MIB=96 # more than what a good image takes; the longest L1 table needs 64

# address sanitizer keeps freed memory for a while
grep -aq __asan_init "$QCOW2_IO" && LIMIT_MIB=256
cd "${SCRATCH:-$(mktemp -d)}" || exit 1
mkdir -p good bad
. "$TOP/tests/badimages/good.sh"
failed=0 cases=0

fail() {
	echo "FAILED: $name ($base, $outcome): $*"
	[[ -s err ]] && { echo "--- said:"; head -n 5 err; }
	failed=$((failed + 1))
}

make_good() {
	good_images
	"$MAKE_BAD" layout good/v3.qcow2 && "$MAKE_BAD" layout good/v2.qcow2 || exit 1
	local mib
	"$BOUNDED" -p peak 60 0 "$QCOW2_IO" -r -c readall good/v3.qcow2 || exit 1
	mib=$(<peak)
	MAX_MIB=$((mib + LIMIT_MIB))
}

# Runs a command in bounded time and memory: its exit status in $status, what it said in out and err.
run() {
	"$BOUNDED" $LIMIT_S $MAX_MIB "$@" >out 2>err.all
	status=$?
	grep -v '^ublk-qcow2: warning: ' err.all >err
	((status < 99)) || fail "$1 ${*:$#}: exit status $status (bounds are 124 and 125, a signal 126)"
}

# The last command was refused: exit status 1, one line that names the program and matches the pattern.
refused() { # WHO
	[[ $status == 1 ]] || fail "$1: exit status $status, not 1"
	[[ $(wc -l <err) == 1 ]] || fail "$1: said $(wc -l <err) lines, not one"
	grep -Eq "^[a-z0-9-]+: .*($pattern)" err || fail "$1: the message does not match '$pattern'"
	grep -q '[^[:print:]]' err && fail "$1: the message has control characters"
	[[ ! -s out ]] || fail "$1: wrote to standard output"
}

accepted() { # WHO
	[[ $status == 0 ]] || fail "$1: exit status $status, not 0"
	[[ ! -s err ]] || fail "$1: complained"
}

unchanged() {
	cmp -s bad/$name.qcow2 before || {
		fail "$1 changed the file"
		cp before bad/$name.qcow2
	}
}

try_info() {
	run "$PROGRAM" info bad/$name.qcow2
}

# Attaching without any device: the FUSE front end's file. An image that is refused needs no front end.
try_add() {
	run "$PROGRAM" add --frontend fuse --no-loop bad/$name.qcow2
}

try_open() { # OPTIONS...
	run "$QCOW2_IO" "$@" -c length bad/$name.qcow2
}

check_errors() { # IMAGE: how many corruptions qemu-img check finds; 99999 if it cannot
	local n
	n=$(timeout 60 qemu-img check -f qcow2 "$1" 2>&1) && { echo 0; return; }
	sed -n 's/^\([0-9]*\) errors were found.*/\1/p' <<<"$n" | grep . && return
	if grep -q 'leaked clusters' <<<"$n"; then echo 0; else echo 99999; fi
}

# qcow2-io with the good contents as shadow, commands on standard input; it must find nothing wrong.
drive() { # WHAT OPTIONS...
	local what=$1
	shift
	"$BOUNDED" $((LIMIT_S * 4)) $MAX_MIB "$QCOW2_IO" --shadow good/raw "$@" bad/$name.qcow2 >err 2>err.all ||
		{ grep -v '^ublk-qcow2: ' err.all >>err; fail "$what: exit status $?"; }
}

case_refuse() {
	try_info
	refused info
	try_add
	refused add
	try_open -r
	refused "open for reading"
	try_open
	refused open
	unchanged "a refused open"
}

case_unserved() {
	try_info
	accepted info
	[[ -s out ]] || fail "info showed nothing"
	grep -q $'[^[:print:]\t]' out && fail "info: control characters"
	try_add
	refused add
	try_open -r
	refused "open for reading"
	try_open
	refused open
	unchanged "a refused open"
}

case_read_only() {
	try_info
	accepted info
	try_add
	refused add
	try_open
	refused open
	if ((len)); then
		drive "reading" -r <<-END
			forget $offset $len
			try read $offset $len
			read 0 $offset
			read $((offset + len)) $((8388608 + 1536 - offset - len))
		END
	else
		drive "reading" -r <<<readall
	fi
	unchanged "reading"
}

# The spoilt range is $offset, $len; see enum outcome in bad.h.
case_range() {
	local end=$((offset + len)) size=$((8388608 + 1536)) rest broken errors
	rest=
	((end >= size)) || rest="read $end $((size - end))"
	((offset == 0)) || rest+=$'\n'"read 0 $offset"
	case $outcome in
	range-eio)
		broken="fail EIO read $offset 512
			fail EIO read $offset $len
			fail EIO read $((end - 512)) 512
			fail EIO read $((offset > 512 ? offset - 512 : 0)) 2048"
		;;
	read-eio)
		broken="fail EIO read $offset 512
			fail EIO read $offset $len
			fail EIO read $((end - 512)) 512"
		;;
	read-any)
		broken="forget $offset $len
			try read $offset $len"
		;;
	esac
	try_info
	accepted info
	drive "reading, read-only" -r <<<"$broken"$'\n'"$rest"
	drive "reading" <<<"$rest"$'\n'"$broken"
	unchanged "reading"
	errors=$(check_errors bad/$name.qcow2)
	case $outcome in
	range-eio)
		broken+=$'\n'"fail EIO write -P 1 $offset 512
			fail EIO write -P 1 $offset 8k
			fail EIO write -z $((end - 512)) 512"
		;;
	read-eio | read-any)
		broken="forget $offset $len"$'\n'${broken//fail EIO/try}$'\n'"try write -P 1 $offset 512
			try write -P 2 $((end - 4096)) 4096
			try write -z $((end - 512)) 512"
		;;
	esac
	# elsewhere: in place, allocating, and with a new L2 table
	drive "writing" <<-END
		$broken
		write -P 0x77 16k 4k
		write -P 0x78 5242880 64k
		write -P 0x79 6M 8k
		discard 28k 4k
		flush
		$rest
		reopen
		$rest
		write -P 0x7a 5242880 512
		write -P 0x7b 7M 128k
		$broken
		reopen
		$rest
	END
	(($(check_errors bad/$name.qcow2) <= errors)) || fail "qemu-img check finds more errors than before"
}

case_alloc() {
	local i errors
	try_info
	accepted info
	drive "reading, read-only" -r <<<readall
	unchanged "reading"
	errors=$(check_errors bad/$name.qcow2)
	{
		echo "try write -P 0x71 5242880 4k"
		echo "try write -P 0x72 6M 4k" # needs an L2 table
		for i in 1 2 3 4 5 6 7 8; do
			echo "try write -P 0x8$i $((5242880 + i * 65536)) 64k"
		done
		echo "try flush"
		echo "write -P 0x77 16k 4k" # in place
		echo "reopen"
		echo "readall"
		echo "try write -P 0x73 7M 1M"
		echo "try flush"
		echo "readall"
	} >script
	# a flush, and so closing, may report that counts could not be written
	"$BOUNDED" $((LIMIT_S * 4)) $MAX_MIB "$QCOW2_IO" --shadow good/raw bad/$name.qcow2 <script >err 2>err.all
	status=$?
	grep -v '^ublk-qcow2: ' err.all >>err
	((status <= 1)) || fail "writing: exit status $status"
	grep -v ': close: ' err | grep -q . && fail "writing"
	drive "reading again" -r <<<"forget 5242880 3147264
		forget 16k 4k
		readall"
	(($(check_errors bad/$name.qcow2) <= errors)) || fail "qemu-img check finds more errors than before"
}

case_served() {
	local errors
	errors=$(check_errors bad/$name.qcow2)
	try_info
	accepted info
	drive "reading, read-only" -r <<<readall
	drive "writing" <<-END
		readall
		write -P 0x77 9k 4k
		write -P 0x78 5242880 64k
		write -P 0x79 6M 8k
		discard 28k 4k
		write -z 2M 512
		flush
		readall
		reopen
		readall
	END
	(($(check_errors bad/$name.qcow2) <= errors)) || fail "qemu-img check finds more errors than before"
}

# Opened for writing, and closed again without a write: $warned is what it warned of.
open_and_close() {
	run "$QCOW2_IO" -c "read -P 0 1M 512" bad/$name.qcow2
	[[ $status == 0 ]] || fail "opening: exit status $status"
	warned=$(sed -n 's/^ublk-qcow2: warning: //p' err.all)
	[[ $(wc -l <err.all) == $(grep -c . <<<"$warned") ]] || fail "opening said something else: $(cat err.all)"
	grep -q '[^[:print:]]' <<<"$warned" && fail "a warning has control characters"
	unchanged "opening and closing"
}

# QEMU's word on it: whether it opens the image and finds nothing wrong with the bitmaps.
qemu_opens() { # IMAGE
	rm -f theirs.qcow2
	cp --sparse=always "$1" theirs.qcow2
	timeout 60 qemu-io -f qcow2 -c "read -q -P 0 1M 512" theirs.qcow2 >theirs 2>&1 && [[ ! -s theirs ]]
}

# The flags of the first bitmap.
first_flags() {
	od -An -tu1 -j$(($(directory_offset) + 15)) -N1 bad/$name.qcow2
}

# What all have in common: info, reading, opening; then writes.
bitmaps_drive() {
	local errors
	try_info
	accepted info
	grep -q $'[^[:print:]\t]' out && fail "info: control characters"
	drive "reading, read-only" -r <<<readall
	unchanged "reading"
	open_and_close
	drive "writing" <<-END
		readall
		write -P 0x77 9k 4k
		write -P 0x78 5242880 64k
		discard 28k 4k
		flush
		readall
		reopen
		write -z 2M 512
		readall
	END
	errors=$(check_errors bad/$name.qcow2)
	((!errors || errors <= $(check_errors before))) || fail "qemu-img check finds more errors than before"
}

autoclear_bit() {
	(($(od -An -tu1 -j95 -N1 bad/$name.qcow2) & 1))
}

case_bitmaps_kept() {
	local flags
	flags=$(first_flags)
	(((flags & 3) == 2)) || fail "the case is wrong: the first bitmap's flags are $flags"
	qemu_opens before || qemu_differs "opens it"
	bitmaps_drive
	if [[ $pattern ]]; then
		grep -Eq "$pattern" <<<"$warned" || fail "the warning does not match '$pattern': $warned"
	elif [[ $warned ]]; then
		fail "warned: $warned"
	fi
	autoclear_bit || fail "the autoclear bit was cleared"
	(($(first_flags) == flags)) || fail "the first bitmap's flags are $(first_flags), and were $flags"
	[[ ${differ:-} == *[[:space:]]$name[[:space:]]* ]] || qemu_opens bad/$name.qcow2 || fail "QEMU opens it no more: $(cat theirs)"
}

case_bitmap_spoiled() {
	qemu_opens before && qemu_differs "finds something wrong"
	bitmaps_drive
	[[ $(grep -c . <<<"$warned") == 1 ]] || fail "$(grep -c . <<<"$warned") warnings, not one"
	grep -Eq "first0.*($pattern)" <<<"$warned" || fail "the warning does not match '$pattern': $warned"
	autoclear_bit || fail "the autoclear bit was cleared"
	(($(first_flags) & 1)) || fail "the first bitmap is not marked as in use"
}

case_bitmaps_broken() {
	qemu_opens before && qemu_differs "finds something wrong"
	bitmaps_drive
	[[ $(grep -c . <<<"$warned") == 1 ]] || fail "$(grep -c . <<<"$warned") warnings, not one"
	grep -Eq "($pattern).*; the dirty bitmaps are not kept up to date" <<<"$warned" ||
		fail "the warning does not match '$pattern': $warned"
	autoclear_bit && fail "the autoclear bit is still set"
	# so that QEMU takes none for valid, and serves the image
	timeout 60 qemu-io -f qcow2 -c "read -P 0x77 9k 4k" bad/$name.qcow2 >theirs 2>&1 || fail "QEMU does not open what is left"
	grep -q 'read 4096/4096' theirs && ! grep -q 'verification failed' theirs || fail "QEMU reads something else"
}

case_bitmaps_ignored() {
	qemu_opens before && qemu_differs "finds something wrong"
	bitmaps_drive
	[[ ! $warned ]] || fail "warned: $warned"
	autoclear_bit && fail "the autoclear bit is set"
}

# Where the good image has its directory.
directory_offset() {
	local at
	at=$(LC_ALL=C grep -obUaP '\x23\x85\x28\x75' bad/$name.qcow2 | head -n 1 | cut -d: -f1)
	echo $((16#$(xxd -p -s $((at + 24)) -l 8 bad/$name.qcow2)))
}

# QEMU judges the image otherwise: that has to be known.
qemu_differs() { # WHAT WE DO
	[[ ${differ:-} == *[[:space:]]$name[[:space:]]* ]] || fail "this program $1, QEMU does not agree: $(head -n 2 theirs)"
}

# Runs all cases with one of these outcomes.
run_cases() {
	local line
	make_good
	while IFS=$'\t' read -r name base outcome offset len pattern; do
		[[ " $* " == *" $outcome "* ]] || continue
		[[ ${CASE:-$name} == "$name" ]] || continue
		cases=$((cases + 1))
		"$MAKE_BAD" make good bad "$name" || exit 1
		cp --sparse=always bad/$name.qcow2 before
		: >err
		case $outcome in
		range-eio | read-eio | read-any) case_range ;;
		*) "case_${outcome//-/_}" ;;
		esac
		rm -f bad/$name.qcow2
	done < <("$MAKE_BAD" list)
	echo "$cases cases, $failed complaints"
	((cases > 0 && failed == 0))
}
