/* SPDX-License-Identifier: MIT */
/*
 * text.h: names from outside made fit to be shown.
 */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

/*
 * @name with every byte that does not belong to a printable UTF-8 character written as \xNN: control
 * characters, broken or overlong sequences, and characters that reorder or hide the text around them.
 * The result is one line of valid UTF-8, the caller's to free; NULL without memory.
 */
char *text_escape(const char *name);

/* The same bytes become '?' each, in place: for a message, whatever names are in it, that must not need memory. */
void text_clean(char *text);

#endif
