/* Refused: events that nobody has read, which cannot be seen without being taken. */
#include "conform.h"
#include <sys/inotify.h>

static int fd;

static const char *setup(void) {
    fd = inotify_init1(0);
    EXPECT(fd >= 0 && inotify_add_watch(fd, ".", IN_CREATE) == 1);
    unlink("made");
    return write_file("made", "x", 1);
}

static const char *check(void) { return readable(fd) ? NULL : "no event"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
