// SPDX-License-Identifier: MIT
/*
 * harden.c: see harden.h.
 */
#include "daemon/harden.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memlock.h"
#include "target/frontend.h"

static int refused(int ret, struct error *err)
{
	struct rlimit limit = {0};

	if (ret != -EPERM && ret != -ENOMEM && ret != -EAGAIN)
		return error_set(err, ret, "memory cannot be locked, as --mlock asks: %s", strerror(-ret));
	(void)getrlimit(RLIMIT_MEMLOCK, &limit);
	return error_set(err, ret,
			 "memory cannot be locked, as --mlock asks: the limit is %llu KiB (RLIMIT_MEMLOCK), "
			 "and there is no privilege to exceed it (CAP_IPC_LOCK)",
			 (unsigned long long)(limit.rlim_cur >> 10));
}

int harden_process(enum harden_mlock mlock, bool *locked, struct error *err)
{
	struct rlimit limit;
	int fd, ret;

	*locked = false;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, "-1000", 5) != 5)
			log_debug("the out-of-memory killer's score cannot be lowered");
		close(fd);
	}
	frontend_protect_thread();
	if (mlock == HARDEN_MLOCK_OFF)
		return 0;
	ret = memlock_from_now();
	*locked = !ret;
	/* under a limit: harden_ready() tries */
	return ret && ret != -EPERM && mlock == HARDEN_MLOCK_ON ? refused(ret, err) : 0;
}

int harden_ready(enum harden_mlock mlock, bool *locked, struct error *err)
{
	int ret = 0;

	if (mlock == HARDEN_MLOCK_OFF)
		return 0;
	if (!*locked)
		ret = memlock_now();
	*locked = !ret;
	if (*locked)
		memlock_populate_code();
	return ret && mlock == HARDEN_MLOCK_ON ? refused(ret, err) : 0;
}
