/* A regular file at an offset, for reading and writing. */
#include "conform.h"

static int fd;
static off_t at = 1000;

__attribute__((used)) const char *files(void) {
    uint8_t data[4096];
    fill(data, sizeof data, 1);
    return write_file("held", data, sizeof data);
}

static const char *setup(void) {
    fd = open("held", O_RDWR | O_CLOEXEC);
    EXPECT(fd >= 0 && lseek(fd, at, SEEK_SET) == at);
    return NULL;
}

static const char *check(void) {
    uint8_t data[4096], got[16];
    fill(data, sizeof data, 1);
    EXPECT(lseek(fd, 0, SEEK_CUR) == at);
    EXPECT((flags_of(fd) & O_ACCMODE) == O_RDWR && is_cloexec(fd));
    EXPECT(read(fd, got, sizeof got) == 16 && !memcmp(got, data + at, 16));
    EXPECT(lseek(fd, at, SEEK_SET) == at);
    return NULL;
}

static const char *change(int n) {
    at += 100 * n;
    return lseek(fd, 100 * n, SEEK_CUR) == at ? NULL : "lseek";
}

static const char *verify(int n) {
    EXPECT(at == 1000 + 100 * n);
    return check();
}
