/* SPDX-License-Identifier: MIT */
/*
 * supervise.c: see supervise.h.
 *
 *     first worker --live--> serving --killed--> another worker, with recovery --live--> serving ...
 *          |                    |                       |
 *          exits: the end       exits: the end          exits: the end; the device waits for `recover`
 *
 * Invariants:
 *  1. (rule 18) The supervisor holds QEMU's image locks, on an open file description of its own, from
 *     before the first worker starts until after the last one ended. Workers take the same ones beside it,
 *     so that the image is locked for as long as either is there. So are its data file and its backing files.
 *     Another program that the supervisor becomes gets the very descriptions: nothing lapses meanwhile.
 *  2. The recovery log, KEY.log in the folder of state, exists as long as a worker that is killed could
 *     be followed by another, and is removed with the entry, by the worker that detached the device.
 *  3. The supervisor may be killed at any time: the worker goes on; if it is killed too, everything that
 *     `recover` needs is in the entry and the log.
 *  4. A worker never serves a device that it took over without having replayed the log (the target's
 *     open fails otherwise).
 *  5. Workers that die again and again are not started for ever: WORKERS_MAX in WORKERS_SPAN_MS.
 *  6. (rule 6) Before a worker takes over, the dead one's I/O is over, and the supervisor has asked the
 *     kernel, by syncing on its own description, whether anything could not be written since that was
 *     opened. The dead worker may have been told, or its ring, when nobody listened any more; the next
 *     one would not be. The answer is in the log before the next worker starts.
 *  7. The passphrase of an encrypted image is in secret memory, of which every worker gets a copy by
 *     fork(); another program gets it by a pipe. It is in no file, argument or environment.
 */
#include "daemon/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/math.h"
#include "base/secret.h"
#include "daemon/control.h"
#include "daemon/harden.h"
#include "daemon/look.h"
#include "daemon/statedir.h"
#include "qcow2.h"
#include "storage/storage.h"

#define WORKERS_MAX	   5
#define WORKERS_SPAN_MS	   60000
#define LOCK_WAIT_MS	   30000 /* for a dead worker's last I/O, where its own locks are in the way */
#define NAME_WAIT_MS	   1000
#define UPGRADE_TIMEOUT_MS 60000
#define SETTLE_WAIT_MS	   60000 /* for a dead worker's I/O, until it is said that it takes long */

struct supervisor {
	struct daemon_config config;
	struct supervision supervision;
	struct statedir dir;
	struct storage *storage; /* holds the locks; NULL: no image, or another program opened it */
	struct storage *data;	 /* the same of an external data file */
	int held[HELD_FDS];	 /* the descriptions that do; -1: none */
	struct storage **layers; /* the same of the backing chain: those of held[HELD_LAYERS] and on */
	unsigned layers_count;
	_Atomic int *shared;
	pid_t worker;
	bool upgrade_asked;		 /* and not done yet */
	uint64_t deaths_ms[WORKERS_MAX]; /* the last ones, round and round */
	unsigned deaths;
	sigset_t signals;
};

static void sleep_ms(unsigned ms)
{
	struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&pause, NULL);
}

/* ---- what outlives the worker ---- */

/* Those of the external data file, if the image has one: as the engine's open would take them. */
static int data_file_lock(struct supervisor *s, struct error *err)
{
	const struct target_options *o = &s->config.target_options;
	struct names_options names = {
		.what = "data file", .top = true, .plain = true, .read_only = o->read_only};
	struct look *look = malloc(sizeof(*look));
	unsigned denied = STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE;
	unsigned used = STORAGE_PERM_CONSISTENT_READ;
	int ret = 0;

	if (!look)
		return error_set(err, -ENOMEM, "out of memory");
	if (!o->read_only)
		used |= STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE;
	/* what is wrong with an image, the target says better */
	if (!look_at(s->storage, look) && look->data_file) {
		ret = names_open(&s->data, NULL, o->path, look->data_file_name, o->names, &names, err);
		if (!ret)
			ret = storage_lock(s->data, used, STORAGE_PERM_ALL & ~denied, err);
		if (!ret)
			s->held[HELD_DATA] = storage_file_fd(s->data);
	}
	free(look);
	return ret;
}

/* What is below an image is read, and nobody may write to it. */
static int layer_keep(struct supervisor *s, struct storage *st)
{
	unsigned shared = STORAGE_PERM_ALL & ~(STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE);

	s->held[HELD_LAYERS + s->layers_count] = storage_file_fd(st);
	s->layers[s->layers_count++] = st;
	return storage_lock(st, STORAGE_PERM_CONSISTENT_READ, shared, NULL);
}

static void layer_data_keep(struct supervisor *s, const char *path, const char *reached,
			    const struct look *look)
{
	struct names_options names = {
		.what = "data file", .plain = true, .read_only = true, .reached_as = reached};
	struct storage *st;

	if (!names_open(&st, NULL, path, look->data_file_name, s->config.target_options.names, &names, NULL))
		(void)!layer_keep(s, st);
}

/*
 * Those of the backing files, and of their data files. Workers take them as well, and say what is wrong with a
 * chain: here it is about the time when there is none.
 */
static void backing_lock(struct supervisor *s)
{
	const struct target_options *o = &s->config.target_options;
	char *path = strdup(o->path), *next = NULL, *reached = NULL, *next_reached = NULL;
	struct names_options names = {
		.what = "backing file", .top = true, .read_only = true, .reached_out = &next_reached};
	struct storage_file_options file = {.read_only = true};
	struct look *look = malloc(sizeof(*look));
	struct storage *image = NULL, *at;

	s->layers = calloc(QCOW2_BACKING_MAX, sizeof(*s->layers));
	if (!look || !path || !s->layers || storage_file_open(&image, path, &file, NULL))
		goto out;
	at = image;
	while (s->layers_count < QCOW2_BACKING_MAX && !look_at(at, look)) {
		if (at != image && look->data_file)
			layer_data_keep(s, path, reached, look);
		if (s->layers_count == QCOW2_BACKING_MAX || !look->backing_file[0] ||
		    names_open(&at, &next, path, look->backing_file, o->names, &names, NULL))
			break;
		free(path);
		free(reached);
		path = next;
		names.reached_as = reached = next_reached;
		names.top = false;
		if (layer_keep(s, at) || !strcmp(look->backing_format, "raw"))
			break;
	}
out:
	storage_close(image);
	free(path);
	free(reached);
	free(look);
}

/* What was inherited the end of the process closes. */
static void layers_close(struct supervisor *s)
{
	for (unsigned i = 0; i < s->layers_count; i++)
		storage_close(s->layers[i]);
	free(s->layers);
	s->layers = NULL;
	s->layers_count = 0;
}

/* The locks that the target would take. Bounded, for a dead worker's own may still be there. */
static int image_lock(struct supervisor *s, struct error *err)
{
	const struct target_options *o = &s->config.target_options;
	struct storage_file_options file = {.read_only = o->read_only};
	bool qcow2 = s->config.target == &target_qcow2;
	unsigned denied = STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE;
	unsigned used = STORAGE_PERM_CONSISTENT_READ;
	int ret;

	if (!o->path)
		return 0;
	if (!o->read_only)
		used |= STORAGE_PERM_WRITE | (qcow2 ? STORAGE_PERM_RESIZE : 0);
	ret = storage_file_open(&s->storage, o->path, &file, err);
	for (unsigned waited_ms = 0; !ret; waited_ms += 20) {
		struct error why = {0};
		bool again;

		ret = storage_lock(s->storage, used, STORAGE_PERM_ALL & ~denied, &why);
		/* our own devices by name, also one that is registered a moment after it took the locks */
		if (ret == -EAGAIN && waited_ms < NAME_WAIT_MS && !s->supervision.replay &&
		    daemon_conflicts(&s->config, &s->dir, &frontend_ublk, err))
			return ret;
		again = ret == -EAGAIN &&
			waited_ms < (s->supervision.replay ? LOCK_WAIT_MS : NAME_WAIT_MS);
		if (!ret)
			s->held[HELD_IMAGE] = storage_file_fd(s->storage);
		if (!ret && qcow2)
			return data_file_lock(s, err);
		if (!again)
			return ret ? error_set(err, ret, "%s", error_text(&why, ret)) : 0;
		ret = 0;
		sleep_ms(20);
	}
	return ret;
}

static int log_open_file(struct supervisor *s, struct error *err)
{
	char name[ENTRY_KEY_MAX + 8];
	int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW, ret;
	uint64_t bytes = s->config.target->log_bytes;
	bool made_now = !s->supervision.replay;
	struct stat st;

	s->supervision.log_fd = -1;
	if (!bytes || s->config.target_options.read_only)
		return 0;
	snprintf(name, sizeof(name), "%s.log", s->supervision.key);
	if (!s->supervision.replay)
		flags |= O_CREAT | O_EXCL;
	s->supervision.log_fd = openat(s->dir.fd, name, flags, 0600);
	/* a former version kept none for what has no changes of its own */
	if (s->supervision.log_fd < 0 && errno == ENOENT && s->config.target != &target_qcow2) {
		s->supervision.log_fd = openat(s->dir.fd, name, flags | O_CREAT | O_EXCL, 0600);
		made_now = true;
	}
	if (s->supervision.log_fd < 0) {
		ret = -errno;
		if (ret == -ENOENT)
			return error_set(err, ret, "the recovery log %s/%s is gone: the changes that it "
						   "held cannot be replayed",
					 s->dir.path, name);
		return error_set(err, ret, "the recovery log %s/%s: %s", s->dir.path, name,
				 strerror(-ret));
	}
	if (!made_now) {
		if (fstat(s->supervision.log_fd, &st) || (uint64_t)st.st_size != bytes)
			return error_set(err, -EINVAL, "the recovery log %s/%s is damaged",
					 s->dir.path, name);
		return 0;
	}
	ret = -posix_fallocate(s->supervision.log_fd, 0, (off_t)bytes);
	return ret ? error_set(err, ret, "no room for the recovery log in %s: %s", s->dir.path,
			       strerror(-ret))
		   : 0;
}

static void log_remove(struct supervisor *s)
{
	char name[ENTRY_KEY_MAX + 8];

	snprintf(name, sizeof(name), "%s.log", s->supervision.key);
	unlinkat(s->dir.fd, name, 0);
}

/* ---- workers ---- */

static int worker_start(struct supervisor *s, int (*worker_main)(const struct daemon_config *config))
{
	sigset_t none;

	atomic_store(s->shared, -1);
	fflush(NULL);
	s->worker = fork();
	if (s->worker)
		return s->worker < 0 ? -errno : 0;
	/*
	 * What the supervisor holds, the worker must not: its own I/O is told by its own description. (The
	 * descriptors alone: storage_close() would unlock the supervisor's descriptions as well.)
	 */
	for (unsigned i = 0; i < HELD_FDS; i++)
		if (s->held[i] >= 0)
			close(s->held[i]);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	_exit(worker_main(&s->config));
}

/* Whether another worker may be started now, after a pause that grows. */
static bool worker_again(struct supervisor *s)
{
	uint64_t now = control_now_ms();
	uint64_t oldest = s->deaths_ms[s->deaths % WORKERS_MAX];

	s->deaths_ms[s->deaths % WORKERS_MAX] = now;
	s->deaths++;
	if (s->deaths > WORKERS_MAX && now - oldest < WORKERS_SPAN_MS)
		return false;
	for (unsigned i = 1, recent = 0; i < WORKERS_MAX && i < s->deaths; i++) {
		if (now - s->deaths_ms[(s->deaths - 1 - i) % WORKERS_MAX] < WORKERS_SPAN_MS / 4)
			sleep_ms(50 << recent++);
	}
	return true;
}

/* The worker has ended: 1 another one is to be started, else the supervisor's exit status, negated. */
static int worker_ended(struct supervisor *s, int status)
{
	int id = atomic_load(s->shared);
	bool killed = WIFSIGNALED(status);

	if (!killed && (id >= 0 || !s->supervision.replay)) {
		/* in order, device and all; or the first one, which said why it could not start */
		if (id < 0)
			log_remove(s);
		return -WEXITSTATUS(status);
	}
	if (id < 0 && !s->supervision.replay) {
		log_remove(s);
		return -1;
	}
	if (id >= 0) {
		s->config.id = id;
		s->supervision.lapsed = false; /* that one began with what it found */
	}
	s->supervision.replay = true;
	if (!killed) {
		log_err("/dev/ublkb%d waits: it could not be taken over; try 'ublk-qcow2 recover %d', or "
			"'ublk-qcow2 del %d' to give it up",
			s->config.id, s->config.id, s->config.id);
		return -1;
	}
	if (!worker_again(s)) {
		log_err("/dev/ublkb%d waits: %d daemons died within %d s; 'ublk-qcow2 recover %d' tries "
			"again",
			s->config.id, WORKERS_MAX, WORKERS_SPAN_MS / 1000, s->config.id);
		return -1;
	}
	if (WTERMSIG(status) == SIGSYS)
		log_err("/dev/ublkb%d: its daemon (process %d) made a system call that it has no use for: "
			"look at the kernel's log, and whether the image comes from somebody who attacks you",
			s->config.id, (int)s->worker);
	log_warn("/dev/ublkb%d: its daemon (process %d) was killed (%s); another one takes over",
		 s->config.id, (int)s->worker, strsignal(WTERMSIG(status)));
	return 1;
}

/* What the log says of syncs from now on. */
static int log_sync_failed(struct supervisor *s, int error)
{
	const struct target_ops *target = s->config.target;
	void *base;
	int ret;

	if (s->supervision.log_fd < 0)
		return 0;
	base = mmap(NULL, target->log_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->supervision.log_fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	ret = target->log_sync_failed(base, target->log_bytes, error);
	munmap(base, target->log_bytes);
	return ret;
}

/* Invariant 6. -ETIMEDOUT: a dead worker's I/O is still under way. */
static int image_settle(struct supervisor *s, struct error *err)
{
	const char *path = s->config.target_options.path;
	int ret = 0, sync_ret = 0;

	if (s->config.target_options.read_only)
		return 0;
	for (unsigned i = 0; !ret && !sync_ret && i < HELD_LAYERS; i++)
		if (s->held[i] >= 0)
			ret = storage_file_settle(s->held[i], path, SETTLE_WAIT_MS, &sync_ret, err);
	if (ret || !sync_ret)
		return ret;
	log_err("%s: what was written could not be made durable (%s): nothing can be from now on; detach "
		"the device and check the image",
		path, error_text(NULL, sync_ret));
	ret = log_sync_failed(s, -sync_ret);
	return ret ? error_set(err, ret, "the recovery log cannot be used: %s", strerror(-ret)) : 0;
}

/* The same between two workers, for as long as it takes; false: no other one is to be started. */
static bool image_settle_waiting(struct supervisor *s)
{
	const struct timespec at_once = {0};
	sigset_t end;

	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigaddset(&end, SIGINT);
	for (;;) {
		struct error err = {0};
		int ret = image_settle(s, &err);

		if (!ret)
			return true;
		log_err("/dev/ublkb%d waits: %s", s->config.id, error_text(&err, ret));
		if (ret != -ETIMEDOUT || sigtimedwait(&end, NULL, &at_once) > 0)
			return false;
	}
}

/*
 * The passphrase on its way into the next program: in a pipe, which is memory of the kernel's that is not
 * swapped, and which nobody else has. -1: there is none, or an error, which was logged.
 */
static int secret_to_pipe(const struct secret *secret)
{
	int fds[2];

	if (!secret)
		return -1;
	if (pipe2(fds, O_CLOEXEC | O_NONBLOCK)) {
		log_err("upgrade: pipe: %s", strerror(errno));
		return -1;
	}
	if (write(fds[1], secret->data, secret->bytes) != (ssize_t)secret->bytes) {
		log_err("upgrade: the passphrase does not fit into a pipe");
		close(fds[0]);
		fds[0] = -1;
	}
	close(fds[1]);
	if (fds[0] >= 0)
		fcntl(fds[0], F_SETFD, 0);
	return fds[0];
}

int supervise_secret_take(struct daemon_config *config, int fd, struct error *err)
{
	struct secret *s = secret_create(SECRET_MAX_BYTES);
	ssize_t n = s ? read(fd, s->data, s->capacity) : -1;

	close(fd);
	if (n <= 0) {
		secret_destroy(s);
		return error_set(err, -EIO, "the passphrase did not arrive");
	}
	s->bytes = (size_t)n;
	config->target_options.passphrase = s;
	return 0;
}

void supervise_held_take(struct daemon_config *config, const char *list)
{
	for (unsigned i = 0; list && i < HELD_FDS; i++) {
		char *end;
		long fd = strtol(list, &end, 10);

		config->held[i] = end > list && fd >= 0 && fd < INT_MAX ? (int)fd + 1 : 0;
		list = *end == ',' ? end + 1 : NULL;
	}
}

static void held_list(const struct supervisor *s, char *text, size_t size)
{
	unsigned count = HELD_FDS;
	size_t len = 0;

	while (count > HELD_LAYERS && s->held[count - 1] < 0)
		count--;
	for (unsigned i = 0; i < count && len < size; i++)
		len += (size_t)snprintf(text + len, size - len, "%s%d", i ? "," : "", s->held[i]);
}

/* Whether they stay open in the next program. */
static void held_inherit(const struct supervisor *s, bool inherit)
{
	for (unsigned i = 0; i < HELD_FDS; i++)
		if (s->held[i] >= 0)
			fcntl(s->held[i], F_SETFD, inherit ? 0 : FD_CLOEXEC);
}

/* Becomes the program that asked for it; returns only if that fails. */
static void supervisor_exec(struct supervisor *s)
{
	const struct secret *secret = s->config.target_options.passphrase;
	char name[ENTRY_KEY_MAX + 8], path[PATH_MAX + 1];
	char command[] = SUPERVISE_COMMAND, program[] = "ublk-qcow2";
	char held[HELD_FDS * sizeof("-2147483648")], secret_text[16];
	char *argv[] = {program, command, s->supervision.key, held, secret_text, NULL};
	int fd, secret_fd = secret_to_pipe(secret);
	ssize_t len = -1;

	if (secret && secret_fd < 0)
		return; /* the next program could not open the image */

	snprintf(name, sizeof(name), "%s.upgrade", s->supervision.key);
	fd = openat(s->dir.fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd >= 0) {
		len = read(fd, path, PATH_MAX);
		close(fd);
		unlinkat(s->dir.fd, name, 0);
	}
	if (len <= 0) {
		log_err("upgrade: nobody said to which program");
		goto out;
	}
	path[len] = '\0';
	/* Invariants 1 and 6: the description lives on. */
	held_list(s, held, sizeof(held));
	snprintf(secret_text, sizeof(secret_text), "%d", secret_fd);
	if (!secret)
		argv[4] = NULL;
	held_inherit(s, true);
	execv(path, argv);
	log_err("upgrade: cannot run %s: %s", path, strerror(errno));
	held_inherit(s, false);
out:
	if (secret_fd >= 0)
		close(secret_fd);
}

/* Whether somebody has said to which program. */
static bool upgrade_wanted(const struct supervisor *s)
{
	char name[ENTRY_KEY_MAX + 8];

	snprintf(name, sizeof(name), "%s.upgrade", s->supervision.key);
	return !faccessat(s->dir.fd, name, F_OK, AT_SYMLINK_NOFOLLOW);
}

/*
 * Waits until the worker has ended; its status. One that is to give way to another program does so when it
 * serves, which its successor may have to do first: it was asked for while it was being killed.
 */
static int worker_wait(struct supervisor *s, bool *upgrade)
{
	const struct timespec step = {.tv_nsec = 20000000};
	int status;

	*upgrade = false;
	while (waitpid(s->worker, &status, WNOHANG) != s->worker) {
		int sig = s->upgrade_asked ? sigtimedwait(&s->signals, NULL, &step)
					   : sigwaitinfo(&s->signals, NULL);

		if (sig == SIGTERM || sig == SIGINT)
			kill(s->worker, SIGTERM);
		s->upgrade_asked |= sig == SIGUSR1;
		if (!s->upgrade_asked || atomic_load(s->shared) < 0)
			continue;
		s->upgrade_asked = false;
		if (!*upgrade && upgrade_wanted(s)) {
			*upgrade = true;
			kill(s->worker, SIGKILL);
		}
	}
	return status;
}

static int workers_run(struct supervisor *s, int (*worker_main)(const struct daemon_config *config),
		       void (*started)(void))
{
	bool again = false;
	int next = 1;

	while (next == 1) {
		bool upgrade;
		int status, ret;

		if (again && !image_settle_waiting(s))
			return 1;
		again = true;
		ret = worker_start(s, worker_main);
		if (ret) {
			log_err("cannot start a daemon: %s", strerror(-ret));
			return 1;
		}
		if (started)
			started();
		started = NULL;
		status = worker_wait(s, &upgrade);
		if (upgrade && WIFSIGNALED(status)) {
			s->config.id = atomic_load(s->shared);
			s->supervision.replay = true;
			s->supervision.lapsed = false;
			supervisor_exec(s);
			continue; /* with the program that there is */
		}
		next = worker_ended(s, status);
	}
	return -next;
}

/* ---- the supervisor ---- */

static int supervisor_init(struct supervisor *s, struct error *err)
{
	struct entry self = {0};
	bool locked;
	int ret;

	/* It syncs the image between two workers, and forks, when it may be memory's shortage that killed one. */
	ret = harden_process(s->config.mlock == HARDEN_MLOCK_ON ? HARDEN_MLOCK_AUTO : s->config.mlock,
			     &locked, err);
	if (ret)
		return ret;
	if (s->config.target_options.passphrase) {
		secret_protect_process();
		secret_relock(s->config.target_options.passphrase);
	}
	sigemptyset(&s->signals);
	sigaddset(&s->signals, SIGCHLD);
	sigaddset(&s->signals, SIGTERM);
	sigaddset(&s->signals, SIGINT);
	sigaddset(&s->signals, SIGUSR1);
	sigaddset(&s->signals, SIGHUP);
	sigprocmask(SIG_BLOCK, &s->signals, NULL);
	ret = statedir_open(&s->dir, true, err);
	if (!ret)
		ret = entry_init(&self, err);
	if (ret)
		return ret;
	s->supervision.supervisor = self.process;
	if (s->config.resume_key)
		snprintf(s->supervision.key, sizeof(s->supervision.key), "%s", s->config.resume_key);
	else
		memcpy(s->supervision.key, self.key, sizeof(self.key));
	s->supervision.replay = s->config.resume_key != NULL;
	s->supervision.lapsed = s->supervision.replay && !s->config.locks_inherited;
	s->shared = mmap(NULL, sizeof(*s->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			 -1, 0);
	if (s->shared == MAP_FAILED)
		return error_set(err, -errno, "mmap: %s", strerror(errno));
	s->supervision.live_id = s->shared;
	s->config.supervision = &s->supervision;
	for (unsigned i = 0; i < HELD_FDS; i++)
		s->held[i] = s->config.held[i] - 1;
	held_inherit(s, false);
	if (!s->config.locks_inherited)
		ret = image_lock(s, err);
	/* a former version left none of those */
	if (!ret && s->held[HELD_LAYERS] < 0 && s->config.target == &target_qcow2 &&
	    s->config.target_options.path)
		backing_lock(s);
	if (!ret)
		ret = log_open_file(s, err);
	if (!ret && s->supervision.replay)
		ret = image_settle(s, err);
	return ret;
}

int supervise(const struct daemon_config *config,
	      int (*worker_main)(const struct daemon_config *config), void (*started)(void),
	      struct error *err)
{
	struct supervisor s = {
		.config = *config,
		.dir = {.fd = -1, .lock_fd = -1},
		.supervision = {.log_fd = -1},
	};
	int ret, status;

	memset(s.held, 0xff, sizeof(s.held));
	ret = supervisor_init(&s, err);
	if (ret) {
		if (s.supervision.log_fd >= 0 && !s.supervision.replay && s.dir.fd >= 0)
			log_remove(&s);
		statedir_close(&s.dir);
		layers_close(&s);
		storage_close(s.data);
		storage_close(s.storage);
		return ret;
	}
	status = workers_run(&s, worker_main, started);
	layers_close(&s);
	storage_close(s.data);
	storage_close(s.storage);
	statedir_close(&s.dir);
	exit(status);
}

int supervise_config(struct daemon_config *config, const struct entry *e, struct error *err)
{
	*config = (struct daemon_config){
		.target = target_find(e->target),
		.frontend = daemon_frontend_find(e->frontend),
		.id = e->id,
		.recovery = e->recovery_fail ? FRONTEND_RECOVERY_FAIL : FRONTEND_RECOVERY_REISSUE,
		.mlock = (enum harden_mlock)e->mlock,
		.hold_enospc = e->hold_enospc,
		.resume_key = e->key,
		.target_options =
			{
				.path = e->image[0] ? e->image : NULL,
				.read_only = e->read_only,
				.direct = e->direct,
				.queues = max_of(e->queues, 1u),
				.depth = max_of(e->depth, 1u),
				.snapshot = e->snapshot[0] ? e->snapshot : NULL,
				.cache_size_bytes = e->cache_size_bytes,
				.writeback_delay_ms = e->writeback_delay_ms,
				.compress = e->compress,
				.discard_ignore = e->discard_ignore,
				.detect_zeroes = (enum qcow2_detect_zeroes)e->detect_zeroes,
				.size_bytes = e->image[0] ? 0 : e->size_bytes,
			},
	};
	config->names.any = e->backing_any;
	config->names.image_as = e->image_as[0] ? e->image_as : NULL;
	config->names.backing_format = e->backing_format[0] ? e->backing_format : NULL;
	for (const char *dir = e->backing_dirs; *dir && config->names.nr_dirs < NAMES_DIRS_MAX;
	     dir += strlen(dir) + 1)
		config->names.dirs[config->names.nr_dirs++] = dir;
	config->target_options.names = &config->names;
	if (!e->recovery || e->id < 0 || !config->target || !config->frontend ||
	    !config->frontend->can_recover)
		return error_set(err, -EINVAL, "was made without recovery");
	return 0;
}

/* ---- upgrading, on the side of who asks ---- */

static int upgrade_write_program(const struct statedir *dir, const struct entry *e, struct error *err)
{
	char name[ENTRY_KEY_MAX + 8], path[PATH_MAX];
	ssize_t len = readlink("/proc/self/exe", path, sizeof(path));
	int fd, ret = 0;

	if (len <= 0 || len == sizeof(path))
		return error_set(err, -EIO, "cannot tell where this program is");
	/* in one piece, with its end: another of us may write it, and the supervisor read it, meanwhile */
	path[len++] = '\0';
	snprintf(name, sizeof(name), "%s.upgrade", e->key);
	fd = openat(dir->fd, name, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 || write(fd, path, (size_t)len) != len)
		ret = errno ? -errno : -EIO;
	if (fd >= 0)
		close(fd);
	return ret ? error_set(err, ret, "%s/%s: %s", dir->path, name, strerror(-ret)) : 0;
}

/* 1 a new worker serves, 0 not yet, -errno it will not. */
static int upgrade_done(const struct statedir *dir, const struct entry *before, struct error *err)
{
	struct entry_list list;
	int ret = entry_list_read(&list, dir, err), done = -ENODEV;
	char name[ENTRY_KEY_MAX + 8];

	/* taken away by who becomes that program: a worker that just died has a successor without that */
	snprintf(name, sizeof(name), "%s.upgrade", before->key);
	for (size_t i = 0; !ret && i < list.count; i++) {
		const struct entry *e = &list.entries[i];

		if (strcmp(e->key, before->key) != 0)
			continue;
		done = e->state == ENTRY_LIVE &&
		       (e->process.pid != before->process.pid ||
			e->process.start_ticks != before->process.start_ticks) &&
		       faccessat(dir->fd, name, F_OK, AT_SYMLINK_NOFOLLOW);
		if (e->state == ENTRY_QUIESCED || e->state == ENTRY_DEAD)
			done = -EIO;
	}
	entry_list_free(&list);
	if (ret)
		return ret;
	if (done == -ENODEV)
		return error_set(err, done, "has gone away meanwhile");
	if (done < 0)
		return error_set(err, done, "was not taken over by the new program: see the log, and "
					    "'ublk-qcow2 recover'");
	return done;
}

/* A supervisor that cannot run the program goes on as the one that it is. */
static int upgrade_check(const struct entry *e, struct error *err)
{
	struct stat ours, theirs;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/exe", (int)e->supervisor.pid);
	if (stat("/proc/self/exe", &ours) || stat(path, &theirs) ||
	    (ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino))
		return 0;
	return error_set(err, -EIO, "is served by the program that it was served by: this one could not be run, see the log");
}

int supervise_upgrade(const struct statedir *dir, const struct entry *e, struct error *err)
{
	int pidfd, ret;

	if (!e->recovery || e->state != ENTRY_LIVE)
		return error_set(err, -EINVAL, "cannot be upgraded: %s",
				 e->recovery ? "it is not being served"
					     : "it was attached without recovery");
	pidfd = process_open(&e->supervisor);
	if (pidfd < 0)
		return error_set(err, pidfd, "cannot be upgraded: its supervisor (process %d) is gone",
				 (int)e->supervisor.pid);
	ret = upgrade_write_program(dir, e, err);
	if (!ret) {
		ret = process_signal(pidfd, SIGUSR1);
		if (ret)
			error_set(err, ret, "process %d: %s", (int)e->supervisor.pid, strerror(-ret));
	}
	close(pidfd);
	if (ret)
		return ret;
	for (unsigned waited_ms = 0; waited_ms < UPGRADE_TIMEOUT_MS; waited_ms += 20) {
		ret = upgrade_done(dir, e, err);
		if (ret < 0)
			return ret;
		if (ret)
			return upgrade_check(e, err);
		sleep_ms(20);
	}
	return error_set(err, -ETIMEDOUT, "the new program did not take over within %d s",
			 UPGRADE_TIMEOUT_MS / 1000);
}
