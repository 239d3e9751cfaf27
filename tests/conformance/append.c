/* A file opened for appending, without access times, at an offset of its own. */
#include "conform.h"

static int fd;
static int flags = O_WRONLY | O_APPEND | O_NOATIME | O_DSYNC;

__attribute__((used)) const char *files(void) { return write_file("log", "begun\n", 6); }

static const char *setup(void) {
    fd = open("log", flags);
    EXPECT(fd >= 0);
    EXPECT(write(fd, "more\n", 5) == 5);
    return NULL;
}

static const char *check(void) {
    struct stat st;
    EXPECT((flags_of(fd) & ~0100000) == flags);
    EXPECT(lseek(fd, 0, SEEK_SET) == 0);
    EXPECT(fstat(fd, &st) == 0 && write(fd, "x", 1) == 1);
    EXPECT(lseek(fd, 0, SEEK_CUR) == st.st_size + 1);
    return NULL;
}

static const char *change(int n) {
    flags = n == 1 ? flags & ~O_APPEND : flags | O_NONBLOCK;
    return fcntl(fd, F_SETFL, flags) == 0 ? NULL : "F_SETFL";
}

static const char *verify(int n) {
    EXPECT((flags_of(fd) & ~0100000) == flags);
    EXPECT(!(flags & O_APPEND) == (n == 1));
    return n == 1 ? NULL : check();
}
