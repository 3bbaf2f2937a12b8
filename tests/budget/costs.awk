# SPDX-License-Identifier: MIT
# costs.awk: reads a callgrind output file; prints what the test of the budgets wants, for REQUESTS requests:
#
#	own N	instructions in src/, include/ and the libraries it calls, but neither what is in tests/ nor
#		copying of memory, which a file's storage leaves to the kernel
#	ring N	of these, the event loop and liburing
#	map N	in map_peek() and all that it calls
#	peeks N	calls of map_peek()
#	bad NAME	a function that allocates or locks was run
#
# Format: the file names a source file (fl=, or fi= and fe= for what is inlined) and a function (fn=),
# both once in full as "(number) name" and then as "(number)"; lines "POSITION COST" follow. Behind
# "calls=" comes one line with the cost of the callee and all that it called, which is not the caller's own.
function named(table, word,    id) {
	id = word
	sub(/ .*/, "", id)
	if (index(word, " "))
		table[id] = substr(word, index(word, " ") + 1)
	return table[id]
}

/^(fl|fi|fe)=/ { file = named(files, substr($0, 4)); next }
/^fn=/ { fn = named(functions, substr($0, 4)); next }
/^(cfi|cfl)=/ { named(files, substr($0, 5)); next }
/^cfn=/ { callee = named(functions, substr($0, 5)); next }
/^calls=/ {
	calls = substr($1, 7) + 0
	getline
	if (callee == "map_peek") {
		map += $2
		peeks += calls
	}
	next
}
/^[0-9+*-]/ {
	total[fn] += $2
	if (file ~ /tests\/budget\// || fn ~ /^_*mem(cpy|move)/)
		next
	own += $2
	if (file ~ /src\/ring\// || file ~ /liburing/ || fn ~ /io_uring/)
		ring += $2
}

END {
	printf "own %d\nring %d\nmap %d\npeeks %d\n", own / REQUESTS, ring / REQUESTS, map / REQUESTS, peeks
	for (fn in total)
		if (fn ~ /^_*(libc_)?(malloc|calloc|realloc|free|cfree|memalign|posix_memalign|aligned_alloc|mmap|munmap|brk|sbrk)(@|$)/ ||
		    fn ~ /^_int_(malloc|free)/ || fn ~ /pthread_(mutex|rwlock|spin|cond)/ || fn ~ /^_*lll_lock/)
			print "bad " fn
}
