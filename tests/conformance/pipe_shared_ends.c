/* Pipes and FIFOs with several descriptions of one end, or one of both: each with its own flags,
 * all with the same content. */
#include "conform.h"

static int ends[2], again_read, again_write, both, named, last = 'c';

static const char *setup(void) {
    char path[64];
    EXPECT(pipe(ends) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
    again_read = open(path, O_RDONLY | O_NONBLOCK);
    again_write = open(path, O_WRONLY | O_CLOEXEC);
    unlink("fifo");
    EXPECT(mkfifo("fifo", 0600) == 0);
    both = open("fifo", O_RDWR | O_NONBLOCK);
    named = open("fifo", O_RDONLY | O_NONBLOCK);
    EXPECT(again_read >= 0 && again_write >= 0 && both >= 0 && named >= 0);
    EXPECT(write(again_write, "abc", 3) == 3 && write(both, "de", 2) == 2);
    return NULL;
}

static const char *holds(int wanted) {
    char text[8];
    EXPECT(last == wanted);
    EXPECT(read(again_read, text, 8) == 3 && text[0] == 'a' && text[2] == wanted);
    EXPECT(read(again_read, text, 8) == -1 && errno == EAGAIN);
    text[0] = 'a', text[1] = 'b', text[2] = (char)wanted;
    EXPECT(write(ends[1], text, 1) == 1 && write(again_write, text + 1, 2) == 2);
    EXPECT(!(flags_of(ends[0]) & O_NONBLOCK) && is_cloexec(again_write));
    EXPECT(readable(ends[0]) && !(flags_of(again_write) & O_NONBLOCK));
    EXPECT(read(named, text, 8) == 2 && !memcmp(text, "de", 2) && write(both, "de", 2) == 2);
    EXPECT(read(both, text, 8) == 2 && write(both, "de", 2) == 2);
    EXPECT((flags_of(both) & O_ACCMODE) == O_RDWR && (flags_of(both) & O_NONBLOCK));
    return NULL;
}

static const char *check(void) { return holds('c'); }

static const char *change(int n) {
    char text[8];
    EXPECT(read(ends[0], text, 8) == 3);
    text[2] = (char)(last = '0' + n);
    return write(ends[1], text, 3) == 3 ? NULL : "write";
}

static const char *verify(int n) { return holds('0' + n); }
