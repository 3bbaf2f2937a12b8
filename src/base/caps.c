/* SPDX-License-Identifier: MIT */
/* caps.c: see caps.h. By the system calls themselves, which are per thread. */
#include "base/caps.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

bool caps_get(uint64_t *effective, uint64_t *permitted)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{0}};

	if (syscall(SYS_capget, &head, data))
		return false;
	*effective = data[0].effective | (uint64_t)data[1].effective << 32;
	*permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
	return true;
}

int caps_keep(uint64_t kept)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	uint64_t effective, permitted;
	struct rlimit limit;

	if (!caps_get(&effective, &permitted))
		return -errno;
	if (getrlimit(RLIMIT_MEMLOCK, &limit) || limit.rlim_cur != RLIM_INFINITY)
		kept |= CAPS_BIT(CAP_IPC_LOCK);
	kept &= permitted;
	/* needs CAP_SETPCAP, without which there is nothing to be had from it */
	for (int i = 0; i < 64 && permitted >> i; i++)
		(void)prctl(PR_CAPBSET_DROP, i, 0, 0, 0);
	(void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (unsigned i = 0; i < 2; i++) {
		data[i].effective = data[i].permitted = (uint32_t)(kept >> 32 * i);
		data[i].inheritable = 0;
	}
	return syscall(SYS_capset, &head, data) ? -errno : 0;
}
