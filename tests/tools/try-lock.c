/* SPDX-License-Identifier: MIT */
/*
 * try-lock.c: asks again and again whether QEMU could open images for writing, by their locks.
 *
 *   try-lock STOP IMAGE...
 *
 * Until a file STOP exists. Whoever uses an image keeps others from writing to it by a read lock on byte 201, for as
 * long as that. Exit status: 0 if it was held each time, and says how often it was asked; 1 if once it was not; 2 if
 * it cannot be asked.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define UNSHARED_WRITE 201
#define IMAGES_MAX     16
#define ASK_FOR_STOP   64

static int write_is_free(int fd)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = UNSHARED_WRITE, .l_len = 1};

	if (fcntl(fd, F_OFD_GETLK, &fl) < 0)
		return -errno;
	return fl.l_type == F_UNLCK;
}

int main(int argc, char **argv)
{
	int fds[IMAGES_MAX], count = argc - 2;
	unsigned long asked = 0;

	if (count < 1 || count > IMAGES_MAX)
		return 2;
	for (int i = 0; i < count; i++) {
		fds[i] = open(argv[2 + i], O_RDWR | O_CLOEXEC);
		if (fds[i] < 0) {
			fprintf(stderr, "%s: %s\n", argv[2 + i], strerror(errno));
			return 2;
		}
	}
	for (; asked % ASK_FOR_STOP || access(argv[1], F_OK); asked++) {
		for (int i = 0; i < count; i++) {
			int is_free = write_is_free(fds[i]);

			if (is_free < 0)
				return 2;
			if (is_free) {
				printf("%s: free for writing, seen at the %luth time\n", argv[2 + i], asked + 1);
				return 1;
			}
		}
	}
	printf("held %lu times\n", asked);
	return 0;
}
