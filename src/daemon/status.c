/* SPDX-License-Identifier: MIT */
/* status.c: see status.h. */
#include "daemon/status.h"

#include <jansson.h>

static json_t *queue_json(const struct frontend_figures *f)
{
	const struct {
		const char *name;
		uint64_t value;
	} figures[] = {
		{"reads", f->reads},	   {"writes", f->writes},     {"others", f->others},
		{"enters", f->enters},	   {"messages", f->messages}, {"coroutines", f->coroutines},
		{"locks", f->locks},	   {"fallbacks", f->fallbacks},
	};
	json_t *o = json_object();

	for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
		json_object_set_new(o, figures[i].name, json_integer((json_int_t)figures[i].value));
	return o;
}

static json_t *figures_json(const struct entry *e, const struct frontend_ops *ops,
			    const struct frontend *f)
{
	json_t *array = json_array();

	for (unsigned i = 0; f && ops->figures && i < e->queues; i++) {
		struct frontend_figures figures = {0};

		ops->figures(f, i, &figures);
		json_array_append_new(array, queue_json(&figures));
	}
	return array;
}

json_t *status_json(const struct entry *e, const struct frontend_ops *ops, struct frontend *f)
{
	json_t *status = entry_to_json(e);

	if (!status)
		return NULL;
	json_object_set_new(status, "held", json_integer(f ? ops->held(f) : 0));
	json_object_set_new(status, "figures", figures_json(e, ops, f));
	return status;
}
