/*
 * Buffers, the outbound queue, and the table of ids.
 *
 * Everything that goes to the server is appended to one buffer, each frame's payload read from its socket
 * straight into place, and written once at the end of a turn of the loop: one system call for however many
 * events the turn had.
 */
#include "keeper.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEEP_BYTES = 1 << 20 };

struct bytes outbound;
bool outbound_waits;

_Noreturn void die(const char *format, ...) {
	int error = errno;
	va_list arguments;
	va_start(arguments, format);
	fputs("keeper: ", stderr);
	vfprintf(stderr, format, arguments);
	if (error != 0) fprintf(stderr, " (%s)", strerror(error));
	fputc('\n', stderr);
	exit(1);
}

uint8_t *bytes_room(struct bytes *b, size_t count) {
	if (b->cap - b->end >= count) return b->data + b->end;
	size_t used = bytes_used(b);
	if (b->start > 0 && b->start >= used && b->cap - used >= count) {
		memcpy(b->data, b->data + b->start, used);
	} else {
		size_t cap = b->cap < 4096 ? 4096 : b->cap;
		while (cap - used < count) cap *= 2;
		uint8_t *data = malloc(cap);
		if (data == NULL) die("out of memory for a buffer of %zu bytes; lower the number of instances", cap);
		if (used > 0) memcpy(data, b->data + b->start, used);
		free(b->data);
		b->data = data;
		b->cap = cap;
	}
	b->start = 0;
	b->end = used;
	return b->data + b->end;
}

void bytes_take(struct bytes *b, size_t count) {
	b->start += count;
	if (b->start < b->end) return;
	b->start = b->end = 0;
	if (b->cap > KEEP_BYTES) bytes_free(b);
}

void bytes_free(struct bytes *b) {
	free(b->data);
	*b = (struct bytes){0};
}

uint8_t *frame_room(size_t bytes_max) {
	return bytes_room(&outbound, sizeof(struct message) + bytes_max) + sizeof(struct message);
}

void frame_end(uint16_t type, uint32_t id, uint32_t tag, uint16_t flags, size_t count) {
	struct message head = {.bytes = (uint32_t)count, .type = type, .flags = flags, .id = id, .reserved = tag};
	memcpy(outbound.data + outbound.end, &head, sizeof head);
	outbound.end += sizeof head + count;
	outbound_waits = false;
}

void frame_unhurried(uint16_t type, uint32_t id, uint32_t tag, const void *payload, size_t count) {
	bool waits = bytes_used(&outbound) == 0 || outbound_waits;
	frame_put(type, id, tag, payload, count);
	outbound_waits = waits;
}

void frame_put(uint16_t type, uint32_t id, uint32_t tag, const void *payload, size_t count) {
	uint8_t *room = frame_room(count);
	if (count > 0) memcpy(room, payload, count);
	frame_end(type, id, tag, 0, count);
}

void frame_failed(uint16_t request_type, uint32_t id, uint32_t tag, int error, const char *format, ...) {
	uint8_t *room = frame_room(sizeof(int32_t) + TEXT_BYTES);
	int32_t number = error;
	memcpy(room, &number, sizeof number);
	va_list arguments;
	va_start(arguments, format);
	int count = vsnprintf((char *)room + sizeof number, TEXT_BYTES, format, arguments);
	va_end(arguments);
	if (count < 0) count = 0;
	if (count >= TEXT_BYTES) count = TEXT_BYTES - 1;
	frame_end(MSG_FAILED, id, tag, request_type, sizeof number + (size_t)count);
}

/* Open addressing, linear probing. A removed entry keeps its id with a NULL value until the next growth. */
static size_t probe(const struct table *t, uint32_t id) {
	size_t at = (id * 2654435769u) & (t->cap - 1);
	while (t->slots[at].id != 0 && t->slots[at].id != id + 1) at = (at + 1) & (t->cap - 1);
	return at;
}

void *table_get(const struct table *t, uint32_t id) {
	return t->cap == 0 ? NULL : t->slots[probe(t, id)].value;
}

static void table_grow(struct table *t) {
	struct table bigger = {.cap = 64};
	while (bigger.cap < t->used * 4) bigger.cap *= 2;
	bigger.slots = calloc(bigger.cap, sizeof *bigger.slots);
	if (bigger.slots == NULL) die("out of memory for %zu ids; lower the number of instances", bigger.cap);
	for (size_t at = 0; at < t->cap; at++) {
		if (t->slots[at].value != NULL) bigger.slots[probe(&bigger, t->slots[at].id - 1)] = t->slots[at];
	}
	bigger.used = bigger.dirty = t->used;
	free(t->slots);
	*t = bigger;
}

void table_put(struct table *t, uint32_t id, void *value) {
	if (t->dirty * 2 >= t->cap) table_grow(t);
	struct slot *slot = &t->slots[probe(t, id)];
	if (slot->id == 0) {
		if (value == NULL) return;
		slot->id = id + 1;
		t->dirty++;
	}
	t->used += (value != NULL) - (size_t)(slot->value != NULL);
	slot->value = value;
}
