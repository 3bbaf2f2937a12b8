/* SPDX-License-Identifier: MIT */
/*
 * bounded.c: runs a command within a bound of time and memory.
 *
 *   bounded [-p FILE] SECONDS MAX_MIB COMMAND...
 *
 * SECONDS are of processor time, so that a busy machine does not matter; of wall time it may take ten
 * times as much. Exit status: the command's; 124 if it took longer (it is killed), 125 if its peak resident memory
 * was above MAX_MIB (0: no bound), 126 if it was ended by a signal, 127 if it could not be run. -p
 * writes the peak in MiB, rounded up, to FILE.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define WALL_FACTOR 10

static volatile sig_atomic_t timed_out;
static pid_t child;

static void on_alarm(int sig)
{
	timed_out = 1;
	kill(child, SIGKILL);
}

static int judge(int status, const struct rusage *usage, long max_s, long max_mib, const char *peak_path)
{
	long peak_mib = (usage->ru_maxrss + 1023) / 1024;
	long cpu_s = usage->ru_utime.tv_sec + usage->ru_stime.tv_sec; /* rounded down by up to 2 */

	if (peak_path) {
		FILE *f = fopen(peak_path, "w");

		if (!f || fprintf(f, "%ld\n", peak_mib) < 0 || fclose(f)) {
			perror(peak_path);
			return 127;
		}
	}
	if (timed_out || cpu_s > max_s) {
		fprintf(stderr, "bounded: it took too long\n");
		return 124;
	}
	if (WIFSIGNALED(status)) {
		fprintf(stderr, "bounded: ended by signal %d (%s)\n", WTERMSIG(status),
			strsignal(WTERMSIG(status)));
		return 126;
	}
	if (max_mib && peak_mib > max_mib) {
		fprintf(stderr, "bounded: used %ld MiB of memory, more than %ld\n", peak_mib, max_mib);
		return 125;
	}
	return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	const char *peak_path = NULL;
	struct rusage usage;
	long max_s;
	int status;

	if (argc > 2 && !strcmp(argv[1], "-p")) {
		peak_path = argv[2];
		argc -= 2;
		argv += 2;
	}
	if (argc < 4) {
		fprintf(stderr, "usage: bounded [-p FILE] SECONDS MAX_MIB COMMAND...\n");
		return 127;
	}
	child = fork();
	if (child < 0)
		return 127;
	if (child == 0) {
		execvp(argv[3], argv + 3);
		perror(argv[3]);
		_exit(127);
	}
	signal(SIGALRM, on_alarm);
	max_s = strtol(argv[1], NULL, 10);
	alarm((unsigned)max_s * WALL_FACTOR);
	while (wait4(child, &status, 0, &usage) < 0)
		if (errno != EINTR)
			return 127;
	return judge(status, &usage, max_s, strtol(argv[2], NULL, 10), peak_path);
}
