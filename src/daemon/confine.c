// SPDX-License-Identifier: MIT
/*
 * confine.c: see confine.h.
 *
 * Capabilities. Root's files are open to root without any; what is dropped is the power over the kernel,
 * over other processes and over other users' files. To open an image takes the latter (images belong to
 * whoever made them), and to say who has it locked takes a look at other processes; both go when the files
 * are open.
 *
 * System calls. A list of those that are needed; the rest falls into two:
 *  - What no correct version of this program, nor a library of it, has a use for, and what an intruder
 *    would begin with (running a program, changing mounts or namespaces, tracing, loading code into the
 *    kernel, changing identity), kills the process. The kernel logs it, and so does the supervisor, which
 *    starts another daemon as after any kill: nothing that was acknowledged is lost.
 *  - All else gets ENOSYS, as from an older kernel, which libraries know how to go on without: a new
 *    version of libc must not kill daemons. (For the same reason clone3, whose flags a filter cannot see,
 *    is not there, and threads come by clone.)
 * Calls that are allowed whatever their arguments cost next to nothing: the kernel keeps a map of them.
 *
 * io_uring. What a ring is asked for is no system call, so each ring is restricted when it is made
 * (ring/restrict.h). A process that serves makes no more rings, so that it is killed if it tries: there would be
 * no restriction on another one.
 */
#include "daemon/confine.h"

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <seccomp.h>

#include "base/caps.h"
#include "base/log.h"
#include "base/math.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* ---- capabilities ---- */

static const uint64_t opening = CAPS_BIT(CAP_DAC_OVERRIDE) | CAPS_BIT(CAP_DAC_READ_SEARCH) | CAPS_BIT(CAP_SYS_PTRACE);

/* From when they are open until the device is there. */
static const uint64_t starting[] = {
	[CONFINE_TOOL] = CAPS_BIT(CAP_CHOWN) | CAPS_BIT(CAP_FOWNER) | CAPS_BIT(CAP_FSETID),
	/* of a device whose server has not got this when it fetches, the kernel reads no partitions */
	[CONFINE_WORKER] = CAPS_BIT(CAP_SYS_ADMIN),
	/* the way to the folder of state, whoever's folders it leads through */
	[CONFINE_FUSE] = CAPS_BIT(CAP_DAC_READ_SEARCH),
	[CONFINE_HELPER] = 0,
	[CONFINE_FUSE_HELPER] = 0,
};

/* What helpers begin with and keep: commands to the driver, mounts and loop devices, and who has the device open. */
#define HELPING (CAPS_BIT(CAP_SYS_ADMIN) | CAPS_BIT(CAP_DAC_READ_SEARCH) | CAPS_BIT(CAP_SYS_PTRACE))

static const uint64_t serving[] = {
	[CONFINE_TOOL] = 0,
	[CONFINE_WORKER] = 0,
	[CONFINE_FUSE] = 0,
	[CONFINE_HELPER] = HELPING,
	[CONFINE_FUSE_HELPER] = HELPING,
};

static void keep(uint64_t kept)
{
	int ret = caps_keep(kept);

	if (ret)
		log_warn("privileges could not be dropped: %s", strerror(-ret));
}

bool confine_privileged(void)
{
	uint64_t effective, permitted;

	return !SANITIZED && caps_get(&effective, &permitted) && (effective & CAPS_BIT(CAP_SYS_ADMIN));
}

/* Where the administrator leaves io_uring to the privileged, rings are made with what that takes. */
static uint64_t for_rings(void)
{
	FILE *f = fopen("/proc/sys/kernel/io_uring_disabled", "re");
	int value = 0, n;

	if (!f)
		return 0;
	n = fscanf(f, "%d", &value);
	fclose(f);
	return n == 1 && value == 1 ? CAPS_BIT(CAP_SYS_ADMIN) : 0;
}

/* ---- system calls ---- */

/* A name that this machine, or this libseccomp, does not have is passed over. */
static const char *const allowed[] = {
	/* files */
	"read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2",
	"pwritev2", "open", "openat", "openat2", "close", "close_range", "lseek", "_llseek", "stat", "fstat",
	"lstat", "newfstatat", "fstatat64", "stat64", "fstat64", "lstat64", "statx", "statfs", "fstatfs",
	"access", "faccessat", "faccessat2", "readlink", "readlinkat", "getdents64", "getcwd", "fcntl",
	"fcntl64", "flock", "ioctl", "fsync", "fdatasync", "sync_file_range", "fallocate", "ftruncate",
	"ftruncate64", "fadvise64", "copy_file_range", "unlink", "unlinkat", "rename", "renameat",
	"renameat2", "mkdir", "mkdirat", "rmdir", "umask", "chdir", "fchdir", "fchmod", "fgetxattr",
	"fsetxattr", "fremovexattr",
	"dup", "dup2", "dup3", "pipe", "pipe2",
	/* waiting, and what is waited for */
	"poll", "ppoll", "select", "pselect6", "eventfd2", "signalfd4", "epoll_create1", "epoll_ctl",
	"epoll_wait", "epoll_pwait", "timerfd_create", "timerfd_settime", "nanosleep", "clock_nanosleep",
	"restart_syscall", "io_uring_setup", "io_uring_enter", "io_uring_register",
	/* memory and threads */
	"brk", "mmap", "mmap2", "munmap", "mprotect", "mremap", "madvise", "mlock", "mlock2", "munlock",
	"mlockall", "munlockall", "membarrier", "futex", "futex_time64", "set_robust_list", "get_robust_list",
	"rseq", "set_tid_address", "arch_prctl", "exit", "exit_group", "wait4", "waitid", "sched_yield",
	"sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_getscheduler", "getcpu", "prctl",
	"capget", "capset", "getpid", "gettid", "getppid", "getpgrp", "getpgid", "getsid", "getuid",
	"geteuid", "getgid", "getegid", "getrlimit", "setrlimit", "prlimit64", "ugetrlimit", "getrusage",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait", "sigreturn", "sigaltstack",
	"kill", "tgkill",
	/* the rest of what the libraries ask */
	"clock_gettime", "clock_getres", "gettimeofday", "time", "getrandom", "uname", "sysinfo", "times",
	/* filters are only ever added: confine_rings() */
	"seccomp",
	/* the control socket, the helper, the log */
	"connect", "accept", "accept4", "sendto", "sendmsg", "recvfrom", "recvmsg", "getsockopt",
	"setsockopt", "getpeername", "getsockname", "shutdown",
};

/* `create --force` takes a file's place, with its owner and mode. */
static const char *const replacing[] = {"link", "linkat", "symlink", "symlinkat", "chmod", "fchmodat", "chown",
					"fchown", "lchown", "fchownat"};

/* Kills, but in CONFINE_FUSE_HELPER. */
static const char *const mounting[] = {"mount", "umount2"};

/* Once all rings are there. */
static const char *const ring_making[] = {"io_uring_setup", "seccomp"};

static const char *const deadly[] = {
	"execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd",
	"pivot_root", "chroot", "setns", "unshare", "open_tree", "move_mount", "fsopen",
	"fsconfig", "fsmount", "fspick", "mount_setattr", "init_module", "finit_module", "delete_module",
	"kexec_load", "kexec_file_load", "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key",
	"request_key", "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid",
	"setfsgid", "setgroups", "swapon", "swapoff", "reboot", "acct", "settimeofday", "clock_settime",
	"clock_adjtime", "adjtimex", "sethostname", "setdomainname", "iopl", "ioperm", "mknod", "mknodat",
	"quotactl", "quotactl_fd", "open_by_handle_at", "syslog", "vhangup", "personality",
};

static int rules_add(scmp_filter_ctx filter, uint32_t action, const char *const *names, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int number = seccomp_syscall_resolve_name(names[i]);
		int ret = number == __NR_SCMP_ERROR
				  ? 0
				  : seccomp_rule_add_array(filter, action, number, 0, NULL);

		/* -EDOM: a call of another architecture */
		if (ret && ret != -EDOM && ret != -EEXIST)
			return ret;
	}
	return 0;
}

/* Threads and children, yes; namespaces, no. Sockets: those of this machine. */
static int rules_add_by_argument(scmp_filter_ctx filter)
{
	const uint64_t namespaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
				    CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
	const struct scmp_arg_cmp flags = SCMP_A0(SCMP_CMP_MASKED_EQ, namespaces, 0);
	const struct scmp_arg_cmp local = SCMP_A0(SCMP_CMP_EQ, AF_UNIX, 0);
	int ret = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, &flags);

	if (!ret)
		ret = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1, &local);
	if (!ret)
		ret = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(socketpair), 1, &local);
	return ret;
}

/* @ret: of what was done to @filter before; frees it. */
static int filter_load(scmp_filter_ctx filter, int ret)
{
	/* what is refused or kills is in the kernel's log, if it keeps one; neither is vital */
	(void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_LOG, 1);
	/* it runs no foreign code, against which speculation would have to be slowed down (before 5.16) */
	(void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_SSB, 1);
	if (!ret)
		ret = seccomp_load(filter);
	seccomp_release(filter);
	return ret;
}

static int filter_install(enum confine_role role)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
	int ret;

	if (!filter)
		return -ENOMEM;
	ret = rules_add(filter, SCMP_ACT_ALLOW, allowed, ARRAY_LEN(allowed));
	if (!ret && role == CONFINE_TOOL)
		ret = rules_add(filter, SCMP_ACT_ALLOW, replacing, ARRAY_LEN(replacing));
	if (!ret)
		ret = rules_add(filter, SCMP_ACT_KILL_PROCESS, deadly, ARRAY_LEN(deadly));
	if (!ret)
		ret = rules_add(filter, role == CONFINE_FUSE_HELPER ? SCMP_ACT_ALLOW : SCMP_ACT_KILL_PROCESS,
				mounting, ARRAY_LEN(mounting));
	if (!ret)
		ret = rules_add_by_argument(filter);
	return filter_load(filter, ret);
}

/* On top of the other one, on every thread that there is. */
static int filter_rings_install(void)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
	int ret;

	if (!filter)
		return -ENOMEM;
	ret = rules_add(filter, SCMP_ACT_KILL_PROCESS, ring_making, ARRAY_LEN(ring_making));
	if (!ret)
		ret = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
	return filter_load(filter, ret);
}

/* ---- both ---- */

void confine(enum confine_role role)
{
	bool helper = role == CONFINE_HELPER || role == CONFINE_FUSE_HELPER;
	uint64_t opens = helper ? serving[role] : opening | starting[role] | for_rings();
	int ret;

	if (SANITIZED)
		return;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		log_warn("privileges may be gained again: %s", strerror(errno));
	keep(opens);
	ret = filter_install(role);
	if (ret)
		log_warn("system calls are not filtered: %s", strerror(-ret));
}

void confine_opened(enum confine_role role, bool foreign)
{
	if (!SANITIZED)
		keep(starting[role] | for_rings() | (foreign ? CAPS_BIT(CAP_DAC_OVERRIDE) : 0));
}

void confine_serving(enum confine_role role, bool foreign)
{
	if (!SANITIZED)
		keep(serving[role] | (foreign ? CAPS_BIT(CAP_DAC_OVERRIDE) : 0));
}

void confine_rings(void)
{
	int ret = SANITIZED ? 0 : filter_rings_install();

	if (ret)
		log_info("rings of io_uring can still be made: %s", strerror(-ret));
}
