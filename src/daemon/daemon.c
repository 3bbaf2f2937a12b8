// SPDX-License-Identifier: MIT
/*
 * daemon.c: the life of one attached device; see daemon.h.
 *
 * The main thread opens the target, starts the front end (which has threads of its own for the I/O),
 * and then waits for signals, control requests, and the front end's word that the device has gone.
 *
 *     registered --> target open --> device there --> serving --> device gone --> target closed
 *     (entry: starting)               (entry: live)    ^    |     (entry: stopping)  (no entry)
 *                                                      +----+ in use: goes on
 *
 * Invariants:
 *  1. The entry exists from before the first thing that could be left behind until after the last, so
 *     that whatever a killed daemon leaves can be found by `del`. It stays where the front end could
 *     not take the device away.
 *  2. Two daemons never register the same writable image or the same device number: registering is
 *     looking and writing under the lock of the folder of state. (QEMU's image locks, taken by the
 *     target, keep everybody else away; here it is about a message that names the other device.)
 *  3. A device in use is not taken away by a signal, nor by `del` without force.
 *  4. Signals are blocked before the first thread starts, and are taken from a signalfd.
 *  5. What came with root's privileges is dropped before the target opens the image, but for what it takes
 *     to open files, and that before the first thread starts (confine.h); what needs privileges later is
 *     done by a helper, which knows the device and nothing of the image.
 *  6. A process that has lost its helper, or the io_uring of a queue, does not try to take its device away without,
 *     if it has a supervisor: it dies, and the next one, which has both, takes over (give_way()).
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "base/log.h"
#include "base/math.h"
#include "base/secret.h"
#include "daemon/control.h"
#include "daemon/entry.h"
#include "daemon/harden.h"
#include "daemon/privileges.h"
#include "daemon/statedir.h"
#include "daemon/status.h"
#include "daemon/supervise.h"
#include "qcow2.h"
#include "storage/names.h"

/* Queues of a device for which no number was asked. */
#define QUEUES_AUTO_MAX 4
/* Requests in flight in a queue, however long they are. */
#define DEPTH_LEAST 4

/* For a moment's user to close the device. */
#define RELEASE_TRIES 20

/* For the lock of the folder of state, of statedir_lock()'s waits each. */
#define REPLAY_LOCK_TRIES 4

struct daemon {
	struct daemon_config config;
	struct statedir dir;
	struct entry entry;
	bool registered;
	struct target_recovery recovery;
	char identity[256];
	int signal_fd;
	struct privileges privileges;
	struct control control;
	struct target *target;
	const struct frontend_ops *frontend_ops;
	struct frontend *frontend;
	bool helper_lost; /* and nobody takes over */
	bool done; /* the device is gone */
	bool left; /* ... in that the image is closed; but it could not be taken away */
	int ret;   /* what that ended with */
};

static const struct frontend_ops *const frontends[] = {&frontend_ublk, &frontend_fuse};

const struct frontend_ops *daemon_frontend_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(frontends); i++)
		if (strcmp(frontends[i]->name, name) == 0)
			return frontends[i];
	return NULL;
}

/* ---- attaching ---- */

static int frontend_choose(struct daemon *d, struct daemon_report *report, struct error *err)
{
	struct error why = {0};
	char text[1200];
	int ret;

	d->frontend_ops = d->config.frontend;
	if (!d->frontend_ops && d->config.no_loop)
		d->frontend_ops = &frontend_fuse;
	if (!d->frontend_ops) {
		d->frontend_ops = &frontend_ublk;
		ret = frontend_ublk.probe(&why);
		if (!ret)
			return 0;
		snprintf(text, sizeof(text), "using fuse, as ublk does not work here: %s",
			 error_text(&why, ret));
		report->note(report, text);
		d->frontend_ops = &frontend_fuse;
		memset(&why, 0, sizeof(why));
	}
	ret = d->frontend_ops->probe(&why);
	return ret ? error_set(err, ret, "%s does not work here: %s", d->frontend_ops->name,
			       error_text(&why, ret))
		   : 0;
}

/* Whether @other, which is registered, keeps @e from being so. */
static int conflict_check(const struct entry *e, const struct entry *other, struct error *err)
{
	bool writable = !e->read_only || !other->read_only;
	const char *device = other->device[0] ? other->device : "a device that is being made";

	if (strcmp(e->key, other->key) == 0)
		return 0; /* its own, of the worker before */
	if (e->image_id[0] && strcmp(e->image_id, other->image_id) == 0) {
		if (other->state == ENTRY_QUIESCED || other->state == ENTRY_RECOVERING)
			return error_set(err, -EBUSY,
					 "waits for recovery as %s: see 'ublk-qcow2 recover'; 'ublk-qcow2 "
					 "del' gives it up",
					 device);
		if (other->state == ENTRY_DEAD)
			return error_set(err, -EBUSY,
					 "was attached as %s by process %d, which died: 'ublk-qcow2 del' "
					 "cleans up after it",
					 device, (int)other->process.pid);
		if (writable)
			return error_set(err, -EBUSY, "is already attached as %s (process %d)", device,
					 (int)other->process.pid);
	}
	if (e->id >= 0 && e->id == other->id && strcmp(e->frontend, other->frontend) == 0)
		return error_set(err, -EEXIST, "number %d is %s, of process %d%s", e->id, device,
				 (int)other->process.pid,
				 entry_is_dead(other) ? " which died: 'ublk-qcow2 del' cleans up after it"
							    : "");
	return 0;
}

int daemon_conflicts(const struct daemon_config *config, const struct statedir *dir,
		     const struct frontend_ops *frontend, struct error *err)
{
	struct entry e = {.id = config->id, .read_only = config->target_options.read_only};
	struct entry_list list;
	struct stat st;
	int ret;

	if (config->target_options.path && stat(config->target_options.path, &st) == 0)
		entry_image_id(e.image_id, &st);
	snprintf(e.frontend, sizeof(e.frontend), "%s", frontend->name);
	if (config->resume_key)
		snprintf(e.key, sizeof(e.key), "%s", config->resume_key);
	ret = entry_list_read(&list, dir, err);
	for (size_t i = 0; !ret && i < list.count; i++)
		ret = conflict_check(&e, &list.entries[i], err);
	entry_list_free(&list);
	return ret;
}

/*
 * Of a device that waits, one supervisor takes care: the first whose worker comes here. That it waits no
 * more, since `del` gave it up, shows here as well.
 */
static int takeover_check(const struct entry *e, const struct entry_list *list, struct error *err)
{
	for (size_t i = 0; i < list->count; i++) {
		const struct entry *other = &list->entries[i];

		if (strcmp(e->key, other->key))
			continue;
		if (entry_is_dead(other) ||
		    (other->supervisor.pid == e->supervisor.pid &&
		     other->supervisor.start_ticks == e->supervisor.start_ticks))
			return 0;
		return error_set(err, -EBUSY,
				 "does not wait for recovery: process %d takes care of it",
				 (int)other->supervisor.pid);
	}
	return error_set(err, -ENODEV, "does not wait for recovery: it was detached");
}

/* Under the lock of the folder; invariant 2. */
static int entry_register(struct daemon *d, struct error *err)
{
	const struct supervision *supervision = d->config.supervision;
	struct entry_list list;
	struct stat st;
	int ret;

	ret = entry_list_read(&list, &d->dir, err);
	if (!ret && supervision && supervision->replay)
		ret = takeover_check(&d->entry, &list, err);
	for (size_t i = 0; !ret && i < list.count; i++)
		ret = conflict_check(&d->entry, &list.entries[i], err);
	entry_list_free(&list);
	if (ret)
		return ret;
	entry_sweep(&d->dir);
	/* of a supervisor that was killed meanwhile, somebody may have removed it, as there was no entry */
	if (supervision && supervision->log_fd >= 0 && (fstat(supervision->log_fd, &st) || !st.st_nlink))
		return error_set(err, -EIO, "the recovery log is gone, as the supervisor is");
	ret = entry_write(&d->entry, &d->dir, err);
	d->registered = !ret;
	return ret;
}

/* The lock is held for as long as it takes to clean up a device; one with users is not left for that. */
static int registration_lock(struct daemon *d, struct error *err)
{
	const struct supervision *supervision = d->config.supervision;
	unsigned tries = supervision && supervision->replay ? REPLAY_LOCK_TRIES : 1;
	int ret = -EWOULDBLOCK;

	while (ret == -EWOULDBLOCK && tries--) {
		memset(err, 0, sizeof(*err));
		ret = statedir_lock(&d->dir, err);
	}
	return ret;
}

/* A supervisor that is not there any more must not make the next daemon allow more, or less. */
static int entry_fill_names(struct entry *e, const struct names_policy *names, struct error *err)
{
	char *end = e->backing_dirs;

	if (!names)
		return 0;
	e->backing_any = names->any;
	if (names->image_as)
		snprintf(e->image_as, sizeof(e->image_as), "%s", names->image_as);
	if (names->backing_format)
		snprintf(e->backing_format, sizeof(e->backing_format), "%s", names->backing_format);
	for (unsigned i = 0; i < names->nr_dirs; i++) {
		size_t len = strlen(names->dirs[i]) + 1;

		if (len >= sizeof(e->backing_dirs) - (size_t)(end - e->backing_dirs))
			return error_set(err, -ENAMETOOLONG,
					 "the names of --backing-dir are longer than %zu bytes",
					 sizeof(e->backing_dirs) - 1);
		memcpy(end, names->dirs[i], len);
		end += len;
	}
	return 0;
}

/* One for each CPU that this process may use. Beyond the bound, memory for buffers and stacks goes first. */
static unsigned queues_default(const struct frontend_ops *frontend)
{
	unsigned queues = QUEUES_AUTO_MAX;
	cpu_set_t cpus;

	if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0)
		queues = min_of((unsigned)CPU_COUNT(&cpus), queues);
	if (frontend->queues_max)
		queues = min_of(frontend->queues_max, queues);
	return max_of(queues, 1u);
}

static int entry_fill(struct daemon *d, struct error *err)
{
	const struct target_options *o = &d->config.target_options;
	const struct supervision *supervision = d->config.supervision;
	struct entry *e = &d->entry;
	struct stat st;
	int ret;

	ret = entry_init(e, err);
	if (ret)
		return ret;
	if (!o->queues)
		d->config.target_options.queues = queues_default(d->frontend_ops);
	e->state = ENTRY_STARTING;
	e->id = d->config.id;
	e->queues = o->queues;
	e->depth = o->depth;
	if (o->snapshot)
		snprintf(e->snapshot, sizeof(e->snapshot), "%s", o->snapshot);
	e->read_only = o->read_only;
	e->direct = o->direct;
	e->started = time(NULL);
	snprintf(e->frontend, sizeof(e->frontend), "%s", d->frontend_ops->name);
	snprintf(e->target, sizeof(e->target), "%s", d->config.target->name);
	e->cache_size_bytes = o->cache_size_bytes;
	e->writeback_delay_ms = o->writeback_delay_ms;
	e->compress = o->compress;
	e->discard_ignore = o->discard_ignore;
	e->detect_zeroes = o->detect_zeroes;
	e->mlock = d->config.mlock;
	e->hold_enospc = d->config.hold_enospc;
	e->size_bytes = o->size_bytes;
	if (supervision) {
		memcpy(e->key, supervision->key, sizeof(e->key));
		e->supervisor = supervision->supervisor;
		/* a new device that is not live yet is nothing to take over */
		e->recovery = supervision->replay;
		e->recovery_fail = d->config.recovery == FRONTEND_RECOVERY_FAIL;
		if (supervision->replay)
			snprintf(e->device, sizeof(e->device), "/dev/ublkb%d", e->id);
	}
	ret = entry_fill_names(e, o->names, err);
	if (ret || !o->path)
		return ret;
	if (stat(o->path, &st))
		return error_set(err, -errno, "%s", strerror(errno));
	entry_image_id(e->image_id, &st);
	snprintf(e->image, sizeof(e->image), "%s", o->path);
	return 0;
}

static int signals_take(struct daemon *d, struct error *err)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); /* EFBIG says it */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return d->signal_fd < 0 ? error_set(err, -errno, "signalfd: %s", strerror(errno)) : 0;
}

static void request_serve(void *arg, struct control_client *client,
			  const struct control_request *request);

/* Fewer queues than were asked for: @possible with this target, and what the front end made of that. */
static void queues_note(const struct daemon *d, unsigned possible, struct daemon_report *report)
{
	unsigned queues = d->entry.queues;
	char text[128];

	snprintf(text, sizeof(text), "%u queue%s, not %u: the %s %s no more", queues,
		 queues == 1 ? "" : "s", d->config.target_options.queues,
		 queues < possible ? d->entry.frontend : d->entry.target,
		 queues < possible ? "front end makes" : "target serves");
	report->note(report, text);
}

/*
 * How many requests are in flight: fewer than were asked for where they have to be long, so that their memory
 * has a bound. A device that is there already stays as it is.
 */
static unsigned depth_choose(const struct daemon *d, const struct frontend_options *options,
			     struct daemon_report *report)
{
	const struct frontend_ops *ops = d->frontend_ops;
	uint64_t whole = d->target->limits.whole_bytes, most = ops->request_max_bytes;
	unsigned depth = d->config.target_options.depth;
	char text[128];

	if (options->recover)
		return depth;
	if (ops->loop_request_max_bytes && !d->config.no_loop)
		most = ops->loop_request_max_bytes;
	if (whole > most) {
		snprintf(text, sizeof(text),
			 "no request of the %s front end holds a whole cluster of %u bytes: none is compressed",
			 ops->name, (unsigned)whole);
		report->note(report, text);
		return depth;
	}
	while (whole && depth > DEPTH_LEAST && depth * whole * options->queues > ops->requests_max_bytes)
		depth /= 2;
	return depth;
}

/* What the target needs to survive this process. */
static int recovery_prepare(struct daemon *d, struct error *err)
{
	const struct supervision *s = d->config.supervision;
	struct target_recovery *r = &d->recovery;

	*r = (struct target_recovery){.replay = s->replay, .locked = true, .lapsed = s->lapsed};
	if (s->log_fd >= 0) {
		r->log_bytes = d->config.target->log_bytes;
		r->log_base = mmap(NULL, r->log_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
				   s->log_fd, 0);
		if (r->log_base == MAP_FAILED)
			return error_set(err, -errno, "the recovery log: %s", strerror(errno));
	}
	snprintf(d->identity, sizeof(d->identity), "%s %s %s", d->entry.process.boot_id,
		 d->entry.image_id, d->entry.target);
	r->identity = d->identity;
	r->identity_bytes = strlen(d->identity);
	d->config.target_options.recovery = r;
	return 0;
}

/* A device that is there already is not lost for want of locked memory. */
static enum harden_mlock mlock_policy(const struct daemon_config *config)
{
	bool replay = config->supervision && config->supervision->replay;

	return replay && config->mlock == HARDEN_MLOCK_ON ? HARDEN_MLOCK_AUTO : config->mlock;
}

/* Invariant 1. What cannot be written is no reason not to go on: as long as the process lives, it takes it away. */
static void device_made(void *arg, int id)
{
	struct daemon *d = arg;
	struct error err = {0};

	d->entry.id = id;
	if (entry_write(&d->entry, &d->dir, &err))
		log_warn("%s", err.text);
}

static int device_start(struct daemon *d, struct daemon_report *report, struct error *err)
{
	const struct supervision *supervision = d->config.supervision;
	const struct target_options *o = &d->config.target_options;
	const char *slash = o->path ? strrchr(o->path, '/') : NULL;
	struct frontend_options options = {
		.id = d->config.id,
		.no_loop = d->config.no_loop,
		.recovery = supervision ? d->config.recovery : FRONTEND_RECOVERY_OFF,
		.data_path = d->config.data_path,
		.no_part_scan = d->config.no_part_scan,
		.hold_enospc = d->config.hold_enospc,
		.unprivileged = d->config.unprivileged,
		.wait_partitions = true,
		.recover = supervision && supervision->replay,
		.helper = d->privileges.helper,
		.made = device_made,
		.made_arg = d,
		.settled = privileges_settled(&d->privileges),
		.run_dir = d->dir.path,
		.name = slash ? slash + 1 : d->config.target->name,
	};
	int ret = 0;

	if (supervision)
		ret = recovery_prepare(d, err);
	if (!ret)
		ret = d->config.target->open(&d->target, o, err);
	/* This process has no more use for it; a supervisor has its own. */
	if (o->passphrase)
		secret_forget(o->passphrase);
	if (ret)
		return ret;
	privileges_opened(&d->privileges);
	options.queues = min_of(o->queues, d->target->limits.max_queues);
	options.depth = depth_choose(d, &options, report);
	ret = d->frontend_ops->start(&d->frontend, d->target, &options, err);
	/* Its queue is stuck in the target, which so must not be closed; see frontend.h. */
	if (ret == -ETIMEDOUT)
		d->target = NULL;
	if (ret)
		return ret;

	d->entry.state = ENTRY_LIVE;
	d->entry.recovery = supervision != NULL;
	d->entry.id = d->frontend_ops->id(d->frontend);
	snprintf(d->entry.device, sizeof(d->entry.device), "%s",
		 d->frontend_ops->device(d->frontend));
	if (d->frontend_ops->data_path)
		snprintf(d->entry.data_path, sizeof(d->entry.data_path), "%s",
			 d->frontend_ops->data_path(d->frontend));
	d->entry.queues = d->frontend_ops->queues(d->frontend);
	d->entry.depth = d->frontend_ops->depth ? d->frontend_ops->depth(d->frontend) : options.depth;
	if (d->entry.queues < o->queues)
		queues_note(d, options.queues, report);
	d->entry.size_bytes = d->target->limits.size_bytes;
	d->entry.read_only = d->target->limits.read_only;
	ret = harden_ready(mlock_policy(&d->config), &d->entry.memory_locked, err);
	if (ret)
		return ret;
	ret = entry_write(&d->entry, &d->dir, err);
	if (ret &&
	    options.recover) { /* it has users: what the entry says of it is not worth their disk */
		log_err("%s", error_text(err, ret));
		ret = 0;
	}
	privileges_serving(&d->privileges);
	if (!ret && supervision)
		atomic_store(supervision->live_id, d->entry.id);
	return ret;
}

/* Takes the device away and closes the target. All errors are logged; the target's is returned before the device's. */
static int device_stop(struct daemon *d, struct error *err)
{
	struct error close_err = {0};
	int ret = 0, close_ret = 0;

	if (d->frontend) {
		ret = d->frontend_ops->stop(d->frontend, err);
		d->frontend = NULL;
		if (ret)
			log_err("%s: %s", d->entry.device, error_text(err, ret));
	}
	/* A queue that did not end still uses the target; see frontend.h. */
	if (ret != -ETIMEDOUT && d->target) {
		close_ret = d->target->ops->close(d->target, &close_err);
		if (close_ret)
			log_err("%s: %s", d->entry.image[0] ? d->entry.image : d->entry.target,
				error_text(&close_err, close_ret));
	}
	d->target = NULL;
	/* Invariant 1: for `del` to find; but what was busy is gone, or goes with its last user. */
	if (ret && ret != -EBUSY)
		d->registered = false;
	if (!close_ret) {
		d->left = ret && ret != -EBUSY && ret != -ETIMEDOUT;
		return ret;
	}
	/* what is lost matters more than what is left */
	memset(err, 0, sizeof(*err));
	return error_set(err, close_ret, "%s", error_text(&close_err, close_ret));
}

static void daemon_destroy(struct daemon *d)
{
	control_close(&d->control);
	if (d->registered)
		entry_remove(&d->entry, &d->dir);
	if (d->signal_fd >= 0)
		close(d->signal_fd);
	privileges_end(&d->privileges);
	statedir_close(&d->dir);
	free(d);
}

int daemon_attach(struct daemon **out, const struct daemon_config *config,
		  struct daemon_report *report, struct error *err)
{
	struct daemon *d = calloc(1, sizeof(*d));
	struct error stop_err = {0};
	int ret;

	if (!d)
		return error_set(err, -ENOMEM, "out of memory");
	d->config = *config;
	d->signal_fd = d->control.fd = d->dir.fd = d->dir.lock_fd = -1;
	d->control.serve = request_serve;
	d->control.arg = d;

	/* First, as probing a front end makes the kernel start threads that inherit what this sets. */
	ret = harden_process(mlock_policy(config), &d->entry.memory_locked, err);
	if (config->target_options.passphrase)
		secret_relock(config->target_options.passphrase);
	if (!ret)
		ret = statedir_open(&d->dir, true, err);
	if (!ret)
		ret = frontend_choose(d, report, err);
	if (!ret)
		ret = entry_fill(d, err);
	if (!ret)
		ret = signals_take(d, err);
	if (!ret)
		ret = registration_lock(d, err);
	if (!ret) {
		ret = entry_register(d, err);
		statedir_unlock(&d->dir);
	}
	if (!ret)
		ret = control_open(&d->control, &d->dir, d->entry.key, err);
	if (!ret)
		ret = privileges_drop(&d->privileges, &d->config, d->frontend_ops, &d->dir, err);
	if (!ret)
		ret = device_start(d, report, err);
	if (ret) {
		/* What went wrong first is what the user reads; this has been logged. */
		(void)!device_stop(d, &stop_err);
		/* Invariant 1: what a stuck thread holds goes away with the process, later. */
		if (ret == -ETIMEDOUT || ret == -EUCLEAN)
			d->registered = false;
		/* A device that could not be taken over waits on, with its entry and its log. */
		if (config->supervision && config->supervision->replay)
			d->registered = false;
		daemon_destroy(d);
		return ret;
	}
	*out = d;
	return 0;
}

/* ---- serving ---- */

/*
 * A process that has lost a part of itself cannot do all that it should. Where a supervisor starts another one it
 * dies at once, as if it had been killed: that one is whole, and has everything that was acknowledged.
 */
static void give_way(const struct daemon *d, const char *lost)
{
	const struct supervision *s = d->config.supervision;

	if (!s || getppid() != s->supervisor.pid)
		return;
	log_err("%s: %s: this process gives way to another one", d->entry.device, lost);
	kill(getpid(), SIGKILL);
}

/*
 * Whether the device is free to go; else @text says why not. What is held for want of space keeps it: the
 * kernel would wait for that.
 */
static bool device_unused(const struct daemon *d, char *text, size_t size)
{
	unsigned held = d->frontend_ops->held(d->frontend);
	int busy = held ? 0 : d->frontend_ops->busy(d->frontend);

	if (busy == -EPIPE) /* who asks is served by the next one */
		give_way(d, "its helper process has died");
	if (held) {
		snprintf(text, size,
			 "has %u request%s held for want of space: make room, or 'del --force' fails %s", held,
			 held == 1 ? "" : "s", held == 1 ? "it" : "them");
		return false;
	}
	if (busy == 0)
		return true;
	if (busy > 0)
		privileges_describe(&d->privileges, d->entry.device, text, size);
	else if (busy == -EPIPE)
		snprintf(text, size, "may be in use: its helper process, which could tell, has died; 'del --force' "
				     "takes it away all the same");
	else
		snprintf(text, size, "may be in use (%s)", strerror(-busy));
	return false;
}

/*
 * Whether the device, which device_unused() found free, stays so: where the kernel can tell, it is taken from
 * its node in one step. Whoever has it open for a moment only (udev looks at every device that is closed) is
 * waited for.
 */
static bool device_released(const struct daemon *d, char *text, size_t size)
{
	struct timespec pause = {.tv_nsec = 50000000};
	struct error err = {0};
	int ret = 0;

	for (unsigned i = 0; d->frontend_ops->release && i < RELEASE_TRIES; i++) {
		ret = d->frontend_ops->release(d->frontend, &err);
		if (ret != -EBUSY)
			return true; /* errors are for stopping to meet */
		nanosleep(&pause, NULL);
	}
	if (ret)
		privileges_describe(&d->privileges, d->entry.device, text, size);
	return !ret;
}

/*
 * Whether the target can be closed without losing what it has acknowledged. What only space is missing for keeps
 * the device, as whoever makes some gets all of it written; other errors are for closing to meet.
 */
static bool device_settled(struct daemon *d, char *text, size_t size)
{
	struct error err = {0};
	int ret = d->target->ops->settle ? d->target->ops->settle(d->target, &err) : 0;

	if (ret != -ENOSPC && ret != -EDQUOT)
		return true;
	snprintf(text, size, "has changes that there is no space for: make room, or 'del --force' gives them up");
	return false;
}

/* Whether the device may be taken away, and is not used any more; else @text says why not. */
static bool device_free(struct daemon *d, char *text, size_t size)
{
	return device_unused(d, text, size) && device_settled(d, text, size) && device_released(d, text, size);
}

/* With @force it is no error that the device had users, who have lost it now. */
static int daemon_stop(struct daemon *d, bool force, struct error *err)
{
	struct error ignored = {0};

	d->entry.state = ENTRY_STOPPING;
	if (entry_write(&d->entry, &d->dir, &ignored))
		log_warn("%s", ignored.text);
	d->ret = device_stop(d, err);
	if (force && d->ret == -EBUSY)
		d->ret = 0;
	d->done = true;
	if (d->registered)
		entry_remove(&d->entry, &d->dir);
	d->registered = false;
	if (!d->ret)
		log_info("%s: detached", d->entry.device);
	return d->ret;
}

/* The target first, then what the kernel thinks of the device; again, if only the latter is missing. */
static int daemon_resize(struct daemon *d, uint64_t size_bytes, struct error *err)
{
	uint64_t block = d->target->limits.logical_block_bytes;
	struct error ignored = {0};
	int ret;

	if (!d->target->ops->resize)
		return error_set(err, -EOPNOTSUPP, "the %s target cannot be resized", d->entry.target);
	if (d->target->limits.read_only)
		return error_set(err, -EROFS, "is attached read-only");
	if (size_bytes & (block - 1))
		return error_set(err, -EINVAL, "the new size is not a multiple of its blocks of %u bytes",
				 (unsigned)block);
	if (size_bytes < target_size(&d->target->limits))
		return error_set(err, -EOPNOTSUPP, "cannot shrink while it is attached");
	if (d->frontend_ops->held(d->frontend)) /* there is no room for larger tables either */
		return error_set(err, -ENOSPC, "requests to it are held for want of space: make room first");
	ret = d->target->ops->resize(d->target, size_bytes, err);
	if (!ret) {
		ret = d->frontend_ops->resize(d->frontend, size_bytes, err);
		if (ret == -EOPNOTSUPP) {
			memset(err, 0, sizeof(*err));
			error_set(err, ret, "the image has the new size; the device gets it when it is "
					    "attached anew, since this kernel cannot tell its users");
		}
	}
	if (ret)
		return ret;
	d->entry.size_bytes = size_bytes;
	if (entry_write(&d->entry, &d->dir, &ignored))
		log_warn("%s", ignored.text);
	log_info("%s: has %llu bytes now", d->entry.device, (unsigned long long)size_bytes);
	return 0;
}

static void resize_serve(struct daemon *d, struct control_client *client, uint64_t size_bytes)
{
	struct error err = {0};
	int ret = daemon_resize(d, size_bytes, &err);

	if (ret)
		control_reply_error(client, error_text(&err, ret));
	else
		control_reply_ok(client, NULL);
}

/* The request of a client that may do it, of a device that is there. */
static void snapshot_serve(struct daemon *d, struct control_client *client,
			   const struct control_request *request)
{
	static const enum target_snapshot what[] = {
		[CONTROL_SNAPSHOT_CREATE] = TARGET_SNAPSHOT_CREATE,
		[CONTROL_SNAPSHOT_APPLY] = TARGET_SNAPSHOT_APPLY,
		[CONTROL_SNAPSHOT_DELETE] = TARGET_SNAPSHOT_DELETE,
	};
	static const char *const done[] = {"made", "applied", "deleted"};
	struct error err = {0};
	uint64_t pause_ns = 0;
	char why[512];
	int ret;

	if (!d->target->ops->snapshot) {
		control_reply_error(client, "is no image that can have snapshots");
		return;
	}
	/* Whoever uses the device would find another disk under it. */
	if (request->snapshot == CONTROL_SNAPSHOT_APPLY && !request->force &&
	    !device_unused(d, why, sizeof(why))) {
		control_reply_error(client, why);
		return;
	}
	ret = d->target->ops->snapshot(d->target, what[request->snapshot], request->name, &pause_ns,
				       &err);
	if (ret) {
		control_reply_error(client, error_text(&err, ret));
		return;
	}
	log_info("%s: snapshot \"%s\" %s; I/O was held back for %llu us", d->entry.device,
		 request->name, done[request->snapshot], (unsigned long long)(pause_ns / 1000));
	control_reply_ok(client, json_pack("{s:I}", "pause_us", (json_int_t)(pause_ns / 1000)));
}

static void request_serve(void *arg, struct control_client *client,
			  const struct control_request *request)
{
	struct daemon *d = arg;
	struct error err = {0};
	char why[512];

	if (request->command == CONTROL_STATUS) {
		control_reply_ok(client, status_json(&d->entry, d->frontend_ops, d->frontend));
		return;
	}
	if (d->done) {
		control_reply_error(client, "is being detached already");
		return;
	}
	if (request->command == CONTROL_RETRY) {
		d->frontend_ops->retry(d->frontend);
		control_reply_ok(client, NULL);
		return;
	}
	if (request->command == CONTROL_RESIZE) {
		resize_serve(d, client, request->size_bytes);
		return;
	}
	if (request->command == CONTROL_SNAPSHOT) {
		snapshot_serve(d, client, request);
		return;
	}
	if (!request->force && !device_free(d, why, sizeof(why))) {
		control_reply_busy(client, why);
		return;
	}
	if (!daemon_stop(d, request->force, &err))
		control_reply_ok(client, NULL);
	else if (d->left)
		control_reply_left(client, error_text(&err, d->ret));
	else
		control_reply_error(client, error_text(&err, d->ret));
}

static void helper_ended(struct daemon *d)
{
	d->helper_lost = true;
	give_way(d, "its helper process has died");
	log_err("%s: its helper process has died: it is served, but cannot be resized, and it takes 'del --force' to "
		"detach it",
		d->entry.device);
}

/* The first request is held for want of space, or the last one has gone on. */
static void held_changed(struct daemon *d)
{
	struct error ignored = {0};
	uint64_t count;
	bool no_space;

	/* first: what changes after the look is told again */
	if (read(d->frontend_ops->hold_fd(d->frontend), &count, sizeof(count)) < 0)
		return;
	no_space = d->frontend_ops->held(d->frontend) > 0;
	if (no_space == d->entry.no_space)
		return;
	d->entry.no_space = no_space;
	if (no_space)
		log_warn("%s: there is no space left for %s: requests that need some are held until there is",
			 d->entry.device, d->entry.image);
	else
		log_info("%s: there is space again: what was held has been done", d->entry.device);
	if (entry_write(&d->entry, &d->dir, &ignored))
		log_warn("%s", ignored.text);
}

static void signals_serve(struct daemon *d)
{
	struct signalfd_siginfo info;
	struct error err = {0};
	char why[512];

	while (!d->done && read(d->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGHUP)
			continue;
		if (!device_free(d, why, sizeof(why))) {
			log_warn("%s %s: it goes on being served, signal %s is ignored",
				 d->entry.device, why,
				 info.ssi_signo == SIGINT ? "SIGINT" : "SIGTERM");
			continue;
		}
		/* An error has been logged, and is the exit status. */
		(void)!daemon_stop(d, false, &err);
	}
}

const char *daemon_device(const struct daemon *d)
{
	return d->entry.device;
}

int daemon_detach(struct daemon *d)
{
	struct error err = {0};
	int ret = daemon_stop(d, false, &err);

	daemon_destroy(d);
	return ret;
}

int daemon_serve(struct daemon *d)
{
	int ret;

	log_info("%s: serves %s (%s, %s)", d->entry.device,
		 d->entry.image[0] ? d->entry.image : d->entry.target, d->entry.target,
		 d->entry.frontend);
	while (!d->done) {
		struct pollfd pfds[4 + CONTROL_POLL_MAX];
		struct error err = {0};
		int timeout_ms = -1;
		unsigned count;

		pfds[0] = (struct pollfd){.fd = d->signal_fd, .events = POLLIN};
		pfds[1] = (struct pollfd){.fd = d->frontend_ops->gone_fd(d->frontend), .events = POLLIN};
		pfds[2] = (struct pollfd){.fd = d->frontend_ops->hold_fd(d->frontend), .events = POLLIN};
		pfds[3] = (struct pollfd){.fd = d->helper_lost ? -1 : privileges_helper_fd(&d->privileges)};
		count = control_poll_prepare(&d->control, pfds + 4, &timeout_ms);
		if (poll(pfds, 4 + count, timeout_ms) < 0) {
			if (errno == EINTR)
				continue;
			log_err("poll: %s", strerror(errno));
			sleep(1);
			continue;
		}
		if (pfds[3].revents)
			helper_ended(d);
		if (pfds[1].fd >= 0 && pfds[1].revents) {
			if (d->frontend_ops->failed && d->frontend_ops->failed(d->frontend))
				give_way(d, "an io_uring has failed");
			log_warn("%s: has gone away", d->entry.device);
			(void)!daemon_stop(d, false, &err);
			break;
		}
		if (pfds[2].fd >= 0 && pfds[2].revents)
			held_changed(d);
		if (pfds[0].revents)
			signals_serve(d);
		if (!d->done)
			control_poll_done(&d->control, pfds + 4, count);
	}
	ret = d->ret;
	daemon_destroy(d);
	return ret;
}
