# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# good.sh: good_images makes in good/, by qemu-img and qemu-io, the images that make-bad spoils copies of, in the
# layout that bad.h describes; for the tests of malformed images, and for what fuzzing begins with.

good_images() {
	local base options
	seq -f '%06.0f of the good image' 1 100000 >good/data
	for base in v3 v2 snap bits; do
		case $base in
		v2) options=cluster_size=4096,compat=0.10 ;;
		*) options=cluster_size=4096 ;;
		esac
		qemu-img create -q -f qcow2 -o $options good/$base.qcow2 $((8388608 + 1536))
		qemu-io -t unsafe -f qcow2 good/$base.qcow2 >/dev/null <<-END
			write -q -s good/data 0 32k
			write -q -s good/data 2M 64k
			write -q -s good/data 3M 4k
			write -q -s good/data 4M 20k
			write -q -s good/data 8M 1536
			write -q -z 4198400 8k
		END
		[[ $base == snap ]] && qemu-img snapshot -c one good/snap.qcow2
	done
	qemu-img bitmap --add -g 64k good/bits.qcow2 first0
	qemu-img bitmap --add --disable -g 4k good/bits.qcow2 second
	qemu-io -f qcow2 -c 'write -q -s good/data 0 32k' good/bits.qcow2
	qemu-img convert -f qcow2 -O raw good/v3.qcow2 good/raw
	for base in zlib zstd; do
		qemu-img convert -c -f raw -O qcow2 -o cluster_size=4096,compression_type=$base good/raw good/$base.qcow2
	done
}
