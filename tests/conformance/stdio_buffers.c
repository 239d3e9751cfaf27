/* Streams of the C library: what is buffered but not written, what is read ahead, and a lock that
 * is held. */
#include "conform.h"

static FILE *out, *in;
static long read_to = 10;

const char *files(void) {
    char text[3000];
    for (int i = 0; i < 3000; i++) text[i] = (char)('a' + i % 26);
    return write_file("stream", text, sizeof text);
}

static const char *setup(void) {
    char text[16];
    in = fopen("stream", "r");
    out = tmpfile();
    EXPECT(in != NULL && out != NULL && fread(text, 1, 10, in) == 10);
    EXPECT(fputs("unwritten", out) >= 0);
    flockfile(out);
    return NULL;
}

static const char *holds(long at) {
    char text[16];
    EXPECT(ftell(in) == at && fread(text, 1, 4, in) == 4);
    for (int i = 0; i < 4; i++) EXPECT(text[i] == 'a' + (at + i) % 26);
    return fseek(in, at, SEEK_SET) == 0 ? NULL : "fseek";
}

static const char *check(void) {
    EXPECT(ftell(out) == 9);
    return holds(10);
}

static const char *change(int n) {
    char text[64];
    read_to = 26 * n + 1;
    EXPECT(fseek(in, read_to, SEEK_SET) == 0);
    EXPECT(fprintf(out, "+%d", n) == 2 && fflush(out) == 0);
    funlockfile(out);
    rewind(out);
    EXPECT(fread(text, 1, sizeof text, out) == 11 && memcmp(text, "unwritten+", 10) == 0);
    return text[10] == '0' + n ? NULL : "what was written";
}

static const char *verify(int n) {
    EXPECT(ftell(out) == 11);
    return holds(26 * n + 1);
}
