/*
 * The facts file: JSON, written member by member (part of the extractor).
 */
#include "extractor.h"
#include <inttypes.h>

/* They describe a process that stands still, are held in memory, and read by the server as a whole. 32,768 mappings take some 4 MiB of it, a gigabyte of which every other page is zeros about as much. */
#define FACTS_BYTES_MAX (64L << 20)

FILE *facts;
static bool need_comma;

/* Bytes of the UTF-8 character at `at`; 0 when there is none. */
static size_t character_bytes(const unsigned char *at)
{
	size_t count = *at < 0x80 ? 1 : *at < 0xc2 ? 0 : *at < 0xe0 ? 2 : *at < 0xf0 ? 3 : *at < 0xf5 ? 4 : 0;
	for (size_t i = 1; i < count; i++)
		if ((at[i] & 0xc0) != 0x80)
			return 0;
	/* overlong forms, surrogates, beyond U+10FFFF */
	if ((*at == 0xe0 && at[1] < 0xa0) || (*at == 0xed && at[1] > 0x9f) || (*at == 0xf0 && at[1] < 0x90) || (*at == 0xf4 && at[1] > 0x8f))
		return 0;
	return count;
}

void json_text(FILE *out, const char *text)
{
	fputc('"', out);
	for (const unsigned char *at = (const unsigned char *)text; *at;) {
		size_t count = character_bytes(at);
		if (count == 0)
			fputs("\\ufffd", out);
		else if (*at == '"' || *at == '\\')
			fprintf(out, "\\%c", *at);
		else if (*at < 0x20 || *at == 0x7f)
			fprintf(out, "\\u%04x", *at);
		else
			fwrite(at, 1, count, out);
		at += count ? count : 1;
	}
	fputc('"', out);
}

static void json_key(const char *key)
{
	if (need_comma)
		fputc(',', facts);
	need_comma = true;
	if (key) {
		json_text(facts, key);
		fputc(':', facts);
	}
}

void json_open(const char *key, char bracket)
{
	if (ftell(facts) > FACTS_BYTES_MAX)
		refuse("what there is to tell of its mappings, descriptors and temporary files takes more than %ld MiB", FACTS_BYTES_MAX >> 20);
	json_key(key);
	fputc(bracket, facts);
	need_comma = false;
}

void json_close(char bracket)
{
	fputc(bracket, facts);
	need_comma = true;
}

void json_string(const char *key, const char *value)
{
	json_key(key);
	json_text(facts, value);
}

void json_path(const char *key, const char *path)
{
	for (const unsigned char *at = (const unsigned char *)path; *at; at += character_bytes(at))
		if (character_bytes(at) == 0)
			refuse("the name of a file is not UTF-8 (%s)", path);
	json_string(key, path);
}

void json_bytes(const char *key, const void *bytes, size_t count)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *at = bytes;
	char text[512];
	json_key(key);
	fputc('"', facts);
	while (count > 0) {
		size_t part = count < sizeof text / 2 ? count : sizeof text / 2;
		for (size_t i = 0; i < part; i++) {
			text[2 * i] = digits[at[i] >> 4];
			text[2 * i + 1] = digits[at[i] & 15];
		}
		fwrite(text, 1, 2 * part, facts);
		at += part;
		count -= part;
	}
	fputc('"', facts);
}

void json_hex(const char *key, uint64_t value)
{
	json_key(key);
	fprintf(facts, "\"0x%" PRIx64 "\"", value);
}

void json_int(const char *key, int64_t value)
{
	json_key(key);
	fprintf(facts, "%" PRId64, value);
}

void json_bool(const char *key, bool value)
{
	json_key(key);
	fputs(value ? "true" : "false", facts);
}
