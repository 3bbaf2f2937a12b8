// SPDX-License-Identifier: MIT
/*
 * unix-client.c: standard input to a UNIX socket, and the answer to standard output, until the other
 * side closes. With --deaf the answer is not read.
 */
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int copy(int from, int to)
{
	char buf[4096];
	ssize_t n = read(from, buf, sizeof(buf));

	for (ssize_t done = 0; done < n;) {
		ssize_t m = to == STDOUT_FILENO
				    ? write(to, buf + done, (size_t)(n - done))
				    : send(to, buf + done, (size_t)(n - done), MSG_NOSIGNAL);

		if (m <= 0)
			return 0;
		done += m;
	}
	return n > 0;
}

int main(int argc, char **argv)
{
	bool deaf = argc == 3 && strcmp(argv[1], "--deaf") == 0;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct pollfd pfds[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};

	if (argc < 2 || strlen(argv[argc - 1]) >= sizeof(addr.sun_path))
		return 2;
	strcpy(addr.sun_path, argv[argc - 1]);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		perror(argv[argc - 1]);
		return 1;
	}
	if (deaf)
		pfds[0].fd = -1;
	for (;;) {
		if (poll(pfds, 2, -1) < 0)
			return 1;
		if (pfds[0].revents && !copy(fd, STDOUT_FILENO))
			return 0;
		/* The end of our side is not the end of the other's. */
		if (pfds[1].revents && !copy(STDIN_FILENO, fd))
			pfds[1].fd = -1;
	}
}
