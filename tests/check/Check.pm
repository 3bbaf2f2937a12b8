# SPDX-License-Identifier: MIT
#
# Check.pm: for the tests of `ublk-qcow2 check`: images of all kinds, a map of where their table
# entries lie, and the comparison with `qemu-img check`.
package Check;
use strict;
use warnings;
use Exporter 'import';
our @EXPORT = qw(run_ok make_image kinds slurp spill broken_image compare ours theirs verdict $program);

our $program = ($ENV{BUILD} // 'build') . '/ublk-qcow2';
my $secret = 'secret,id=s,data=open sesame';

sub run_ok {
	open my $out, '>&', \*STDOUT or die;
	open STDOUT, '>', '/dev/null' or die;
	my $status = system @_;
	open STDOUT, '>&', $out or die;
	die "failed: @_\n" if $status;
}

sub create {
	my ($file, $size, $options, @rest) = @_;
	run_ok(qw(qemu-img create -q -f qcow2), @rest, '-o', $options, $file, $size);
}

sub io {
	my ($file, @commands) = @_;
	run_ok('qemu-io', (map { ('-c', $_) } @commands), $file);
}

# What a kind of image is: a function that makes it. All are small, so that many can be tried.
my %kinds = (
	empty => sub { create($_[0], '3M', 'cluster_size=64k') },
	v2 => sub {
		create($_[0], '2M', 'compat=0.10,cluster_size=4k');
		io($_[0], 'write -P 1 0 300k', 'write -P 2 1M 8k');
	},
	v3 => sub {
		create($_[0], '1M', 'cluster_size=512');
		io($_[0], 'write -P 1 0 60k', 'write -P 2 500k 4k', 'write -z 10k 8k', 'discard 20k 9k');
	},
	large_clusters => sub {
		create($_[0], '100M', 'cluster_size=2M');
		io($_[0], 'write 0 3M', 'write 50M 1k', 'write -z 60M 8M');
	},
	preallocated => sub { create($_[0], '4M', 'cluster_size=4k,preallocation=metadata') },
	zeros => sub {
		create($_[0], '4M', 'cluster_size=4k,preallocation=metadata');
		io($_[0], 'write -z 1M 1M', 'write -z -u 3M 512k');
	},
	(map { my $bits = $_; ("refcount_$bits" => sub {
		create($_[0], '1M', "cluster_size=1k,refcount_bits=$bits");
		io($_[0], 'write 0 200k', 'write 700k 33k');
	}) } 1, 2, 8, 32, 64),
	snapshots => sub {
		create($_[0], '2M', 'cluster_size=4k');
		io($_[0], 'write -P 1 0 500k');
		run_ok(qw(qemu-img snapshot -c one), $_[0]);
		io($_[0], 'write -P 2 100k 60k');
		run_ok(qw(qemu-img snapshot -c), 'a longer name', $_[0]);
		io($_[0], 'write -P 3 130k 1M');
	},
	snapshots_512 => sub {
		create($_[0], '300k', 'cluster_size=512,refcount_bits=4');
		io($_[0], 'write -P 1 0 50k');
		run_ok(qw(qemu-img snapshot -c), $_, $_[0]) for 1 .. 5;
		io($_[0], 'write -P 2 10k 6k');
	},
	compressed => sub {
		create("$_[0].raw", '2M', 'cluster_size=4k');
		io("$_[0].raw", 'write -P 1 0 700k', 'write -P 2 1M 100k');
		run_ok(qw(qemu-img convert -c -f qcow2 -O qcow2 -o cluster_size=4k), "$_[0].raw", $_[0]);
		io($_[0], 'write -P 3 16k 9k');
		unlink "$_[0].raw";
	},
	zstd => sub {
		create("$_[0].raw", '2M', 'cluster_size=64k');
		io("$_[0].raw", 'write -P 1 0 1M');
		run_ok(qw(qemu-img convert -c -f qcow2 -O qcow2 -o compression_type=zstd), "$_[0].raw", $_[0]);
		unlink "$_[0].raw";
	},
	extended => sub {
		create($_[0], '8M', 'cluster_size=16k,extended_l2=on');
		io($_[0], 'write 0 100k', 'write 1M 512', 'write 3M 200k', 'write -z 64k 5k', 'discard 90k 4k');
	},
	extended_preallocated => sub {
		create($_[0], '2M', 'cluster_size=16k,extended_l2=on,preallocation=metadata');
		io($_[0], 'write 0 100k');
	},
	bitmaps => sub {
		create($_[0], '16M', 'cluster_size=4k');
		run_ok(qw(qemu-img bitmap --add -g 64k), $_[0], 'b0');
		run_ok(qw(qemu-img bitmap --add --disable), $_[0], 'b1');
		io($_[0], 'write 0 300k', 'write 9M 1M');
	},
	lazy => sub {
		create($_[0], '2M', 'cluster_size=4k,lazy_refcounts=on');
		io($_[0], 'write 0 100k');
	},
	# Killed before it wrote its refcounts: referenced clusters have none, the dirty bit is set.
	dirty => sub {
		create($_[0], '2M', 'cluster_size=4k,lazy_refcounts=on');
		system "qemu-io -c 'write 0 100k' -c 'write 1M 40k' -c flush -c abort $_[0] >/dev/null 2>&1";
	},
	backed => sub {
		run_ok(qw(qemu-img create -q -f raw), "$_[0].base", '1M');
		create($_[0], '2M', 'cluster_size=4k', '-F', 'raw', '-b', "$_[0].base");
		io($_[0], 'write 3k 100k');
	},
	data_file => sub {
		create($_[0], '2M', "cluster_size=4k,data_file=$_[0].data");
		io($_[0], 'write 0 100k', 'write -z 50k 30k', 'discard 10k 20k');
	},
	luks => sub {
		# On a busy machine qemu-img cannot measure how fast it derives keys, and gives up; quick-kdf lets it
		# end that soon.
		local $ENV{LD_PRELOAD} = ($ENV{BUILD} // 'build') . '/tests/tools/quick-kdf.so';
		for my $try (1 .. 50) {
			last if eval {
				create($_[0], '1M', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,' .
					'cluster_size=4k', '--object', $secret);
				1;
			};
			die $@ if $try == 50;
			select undef, undef, undef, 0.2;
		}
		run_ok('qemu-io', '--object', $secret, '--image-opts', '-c', 'write 0 30k',
			"driver=qcow2,file.filename=$_[0],encrypt.key-secret=s");
	},
);

sub kinds { return sort keys %kinds }

sub make_image {
	my ($kind, $file) = @_;
	unlink $file, "$file.base", "$file.data";
	$kinds{$kind}->($file);
}

sub slurp {
	my ($file) = @_;
	open my $in, '<:raw', $file or die "$file: $!\n";
	local $/;
	return <$in>;
}

sub spill {
	my ($file, $bytes) = @_;
	open my $out, '>:raw', $file or die "$file: $!\n";
	print $out $bytes;
	close $out or die "$file: $!\n";
}

sub be64 { return length $_[0] >= $_[1] + 8 ? unpack 'Q>', substr $_[0], $_[1], 8 : 0 }

# Where entries lie, by kind: {l1 => [offset...], l2 => ..., rt => ..., snapshot => ..., ...}; each is 8
# bytes long. Refcounts come as the 8 bytes around them.
sub parse {
	my ($bytes) = @_;
	my %h;
	@h{qw(bits l1_size l1 rt rt_clusters snapshots snapshots_offset)} = (
		unpack('x20 N', $bytes), unpack('x36 N', $bytes), be64($bytes, 40), be64($bytes, 48),
		unpack('x56 N', $bytes), unpack('x60 N', $bytes), be64($bytes, 64));
	my $cluster = 1 << $h{bits};
	my $mask = ~(0xff << 56 | 0x1ff);
	my %at = (cluster => $cluster, size => length $bytes);
	my @l1 = ([$h{l1}, $h{l1_size}]);
	my $offset = $h{snapshots_offset};
	for (1 .. $h{snapshots}) {
		push @l1, [be64($bytes, $offset), unpack 'N', substr $bytes, $offset + 8, 4];
		push @{$at{snapshot}}, $offset, $offset + 8, $offset + 32;
		my ($id, $name, $extra) = (unpack('n', substr $bytes, $offset + 12, 2),
			unpack('n', substr $bytes, $offset + 14, 2), unpack('N', substr $bytes, $offset + 36, 4));
		$offset = ($offset + 40 + $id + $name + $extra + 7) & ~7;
	}
	for my $table (@l1) {
		for my $i (0 .. $table->[1] - 1) {
			push @{$at{l1}}, $table->[0] + 8 * $i;
			my $l2 = be64($bytes, $table->[0] + 8 * $i) & $mask or next;
			for (my $e = 0; $e < $cluster; $e += 8) {
				push @{$at{l2}}, $l2 + $e if be64($bytes, $l2 + $e) || $e % 64 == 0;
			}
		}
	}
	for my $i (0 .. $h{rt_clusters} * $cluster / 8 - 1) {
		my $block = be64($bytes, $h{rt} + 8 * $i);
		push @{$at{rt}}, $h{rt} + 8 * $i if $block || $i < 4;
		next if !$block;
		for (my $e = 0; $e < $cluster; $e += 8) {
			push @{$at{refcount}}, $block + $e if be64($bytes, $block + $e) || $e % 512 == 0;
		}
	}
	return \%at;
}

# ---- broken images ----

sub pick { return $_[int rand @_] }

# A value of an entry that is wrong in one of the ways that matter.
sub mutate {
	my ($value, $at, $bytes, $kind) = @_;
	my $cluster = $at->{cluster};
	my @ways = (
		sub { 0 },
		sub { $value ^ 1 << int rand 64 },
		sub { $value ^ 1 << 63 },
		sub { $value ^ 1 << 62 },
		sub { $value ^ 1 },
		sub { $value ^ 2 },
		sub { $value + $cluster },
		sub { $value + 512 },
		sub { ($value & 1 << 63) | $at->{size} & ~511 },
		sub { ($value & 1 << 63) | ($at->{size} + 10 * $cluster) & ~($cluster - 1) },
		sub { ($value & 1 << 63) | int(rand($at->{size} / $cluster)) * $cluster },
		sub { unpack 'Q>', substr $bytes, pick(@{$at->{$kind}}), 8 },
		sub { int rand 1 << 62 },
		sub { ~0 },
		sub { $value >> 8 },
	);
	return pick(@ways)->();
}

my %sound;

# The kind, the bytes of a broken image, and what was done to it. Base and data files are made beside
# it, under the names that are in the image.
sub broken_image {
	my ($seed) = @_;
	srand $seed;
	my $kind = pick(kinds());
	if (!$sound{$kind}) {
		make_image($kind, "image.$kind");
		$sound{$kind} = slurp("image.$kind");
	}
	my $bytes = $sound{$kind};
	my $at = parse($bytes);
	my @log;
	for (1 .. 1 + int rand 3) {
		my $entry = pick(grep { $at->{$_} } qw(l1 l2 l2 l2 rt refcount refcount snapshot));
		my $offset = pick(@{$at->{$entry}});
		next if $offset + 8 > length $bytes;
		my $value = unpack 'Q>', substr $bytes, $offset, 8;
		my $new = mutate($value, $at, $bytes, $entry);
		substr($bytes, $offset, 8) = pack 'Q>', $new;
		push @log, sprintf '%s entry at %d: %016x -> %016x', $entry, $offset, $value, $new;
	}
	# Now and then the end is missing.
	if (rand() < 0.05) {
		my $size = int rand length $bytes;
		$bytes = substr $bytes, 0, $size;
		push @log, "cut to $size bytes";
	}
	return ($kind, $bytes, join '; ', @log);
}

# ---- the two checkers ----

my @figures = qw(corruptions leaks total-clusters allocated-clusters fragmented-clusters
	compressed-clusters image-end-offset);

sub judge {
	my ($file, @command) = @_;
	open my $pipe, '-|', 'timeout', '20', @command or die;
	my $json = do { local $/; <$pipe> };
	close $pipe;
	my $status = $? >> 8;
	my $signal = $? & 127;
	my %result = (status => $signal ? "signal $signal" : $status);
	return \%result if $status == 1;
	my %data = $json =~ /"([a-z-]+)": (\d+)/g;
	$result{$_} = $data{$_} // 0 for @figures;
	$result{fixed} = join '/', map { $data{$_} // 0 } 'corruptions-fixed', 'leaks-fixed';
	return \%result;
}

sub ours {
	my ($file, @options) = @_;
	return judge($file, 'sh', '-c', 'exec "$@" 2>ours.err', 'sh', $program, 'check', '--json', @options, $file);
}

sub theirs {
	my ($file, $kind, @options) = @_;
	my @image = ('-f', 'qcow2', $file);
	@image = ('--object', $secret, '--image-opts', "driver=qcow2,file.filename=$file,encrypt.key-secret=s")
		if $kind eq 'luks';
	return judge($file, 'sh', '-c', 'exec "$@" 2>theirs.err', 'sh', qw(qemu-img check --output=json), @options, @image);
}

sub verdict {
	my ($result) = @_;
	return join ' ', map { "$_=$result->{$_}" } sort keys %$result;
}

# True if both come to the same result; else says how they differ.
sub compare {
	my ($what, $a, $b) = @_;
	return 1 if verdict($a) eq verdict($b);
	print "$what\n  ours:     ", verdict($a), "\n  qemu-img: ", verdict($b), "\n";
	return 0;
}

1;
