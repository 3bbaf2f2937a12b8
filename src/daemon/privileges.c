// SPDX-License-Identifier: MIT
/*
 * privileges.c: see privileges.h.
 */
#include "daemon/privileges.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"
#include "daemon/daemon.h"
#include "daemon/inuse.h"
#include "daemon/statedir.h"
#include "target/frontend.h"

#define DESCRIBE_BYTES 512
#define DESCRIBE_MS    5000

/* The image is not this user's; see confine_serving(). Written before there are threads. */
static bool foreign;

/* In the helper, which sees the mounts of the host. */
static int describe_help(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg)
{
	char device[64];

	snprintf(device, sizeof(device), "%.*s", (int)min_of(bytes, sizeof(device)), (const char *)data);
	inuse_describe(device, data, bytes);
	return 0;
}

void privileges_describe(const struct privileges *p, const char *device, char *text, size_t size)
{
	char data[DESCRIBE_BYTES] = "";
	size_t len = strlen(device);

	if (!p->helper) {
		inuse_describe(device, text, size);
		return;
	}
	memcpy(data, device, min_of(len, sizeof(data) - 1));
	if (helper_ask(p->helper, HELPER_DESCRIBE, data, sizeof(data), DESCRIBE_MS, NULL, NULL))
		snprintf(text, size, "is open");
	else
		snprintf(text, size, "%.*s", (int)sizeof(data) - 1, data);
}

static void helper_confine(void)
{
	confine(CONFINE_HELPER);
}

static void fuse_helper_confine(void)
{
	confine(CONFINE_FUSE_HELPER);
}

int privileges_drop(struct privileges *p, const struct daemon_config *config,
		    const struct frontend_ops *frontend, const struct statedir *dir, struct error *err)
{
	bool ublk = frontend == &frontend_ublk;
	struct helper_config helper = {
		.confine = ublk ? helper_confine : fuse_helper_confine,
		.run_dir = dir->path,
	};
	struct stat st;
	int ret;

	p->role = ublk ? CONFINE_WORKER : CONFINE_FUSE;
	if (!confine_privileged()) {
		/* a user's own device: there is the filter, and there is no more */
		if (ublk)
			confine(p->role);
		p->filtered = ublk;
		return 0;
	}
	p->dropped = p->filtered = true;
	foreign = config->target_options.path && !stat(config->target_options.path, &st) &&
		  st.st_uid != geteuid();
	memcpy(helper.fns, frontend->help, sizeof(helper.fns));
	helper.ended = frontend->help_ended;
	helper.fns[HELPER_DESCRIBE] = describe_help;
	ret = helper_start(&p->helper, &helper, err);
	if (ret)
		return ret;
	/* what FUSE mounts is for the host to see: its helper does it, which stays in the host's namespace */
	if (!config->foreground)
		namespace_enter(&p->namespace, dir->path, &config->target_options);
	confine(p->role);
	return 0;
}

void privileges_opened(struct privileges *p)
{
	if (p->dropped)
		confine_opened(p->role, foreign);
}

/* On each thread of the front end. */
static void worker_serving(void)
{
	confine_serving(CONFINE_WORKER, foreign);
}

static void fuse_serving(void)
{
	confine_serving(CONFINE_FUSE, foreign);
}

void (*privileges_settled(const struct privileges *p))(void)
{
	if (!p->dropped)
		return NULL;
	return p->role == CONFINE_WORKER ? worker_serving : fuse_serving;
}

void privileges_serving(struct privileges *p)
{
	namespace_empty(&p->namespace);
	if (p->dropped)
		confine_serving(p->role, foreign);
	if (p->filtered)
		confine_rings();
}

int privileges_helper_fd(const struct privileges *p)
{
	return p->helper ? helper_fd(p->helper) : -1;
}

void privileges_end(struct privileges *p)
{
	namespace_leave(&p->namespace);
	helper_stop(p->helper);
	p->helper = NULL;
}
