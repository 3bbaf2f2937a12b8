#!/bin/bash
# SPDX-License-Identifier: MIT
# install-deps.sh: installs the Debian packages that are missing, saying which.
#
#   packaging/install-deps.sh [build] [demo] [test] [bench] [workloads]
#
# Without root it says what to install, with status 1. On a system without dpkg it says nothing and
# leaves the matter to the compiler.
set -euo pipefail

# What each purpose needs. libc6-dev is spelt out, as gcc only recommends it.
build=(gcc libc6-dev pkg-config liburing-dev libfuse3-dev libjansson-dev
	libdeflate-dev zlib1g-dev libzstd-dev libgcrypt20-dev libseccomp-dev)
demo=(qemu-utils e2fsprogs fuse3 mount util-linux diffutils findutils)
test=(qemu-utils e2fsprogs fuse3 mount util-linux diffutils findutils
	libcmocka-dev fio xfsprogs btrfs-progs kmod procps iproute2 jq valgrind attr udev git)
bench=(qemu-utils qemu-system-common fio fuse3 mount util-linux python3 valgrind strace)
# beside those of the tests; tests/workloads/README.md
workloads=(linux-source xz-utils flex bison bc postgresql)
# the virtual machine, for hosts without ublk (amd64 only)
machine=(qemu-system-x86 qemu-system-common busybox)

command -v dpkg-query >/dev/null || exit 0

[[ $# -gt 0 ]] || set -- build
wanted=()
for purpose; do
	case $purpose in
	build) wanted+=("${build[@]}") ;;
	demo) wanted+=("${demo[@]}") ;;
	workloads) wanted+=("${workloads[@]}") ;;
	test | bench)
		if [[ $purpose == test ]]; then wanted+=("${test[@]}"); else wanted+=("${bench[@]}"); fi
		[[ -e /dev/ublk-control || -n ${UML_RUN:-} || $(uname -m) != x86_64 ]] ||
			wanted+=("${machine[@]}")
		;;
	*) echo "install-deps.sh: no such purpose: $purpose" >&2; exit 2 ;;
	esac
done

# Names of the wanted packages that are not installed, each once.
missing=()
installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' 2>/dev/null | awk '$1 == "ii" { print $2 }')
for package in $(printf '%s\n' "${wanted[@]}" | sort -u); do
	grep -qxF "$package" <<<"$installed" || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $EUID != 0 ]]; then
	echo "Debian packages are missing. As root: apt-get install ${missing[*]}" >&2
	exit 1
fi
echo "installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >"$log" 2>&1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# a fresh system has no package lists, an old one has stale ones
install || { apt-get update -qq >"$log" 2>&1 && install; } || {
	cat "$log" >&2
	echo "install-deps.sh: apt-get could not install: ${missing[*]}" >&2
	exit 1
}
