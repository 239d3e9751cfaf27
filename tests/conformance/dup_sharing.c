/* Descriptors that share one description, and one of the same file that does not. */
#include "conform.h"

static int one, copy, high, other;
static off_t at = 500;

__attribute__((used)) const char *files(void) {
    uint8_t data[4096];
    fill(data, sizeof data, 2);
    return write_file("held", data, sizeof data);
}

static const char *setup(void) {
    one = open("held", O_RDWR);
    copy = dup(one);
    high = fcntl(one, F_DUPFD_CLOEXEC, 900);
    other = open("held", O_RDWR);
    EXPECT(one >= 0 && copy >= 0 && high == 900 && other >= 0);
    EXPECT(lseek(one, at, SEEK_SET) == at);
    return NULL;
}

static const char *check(void) {
    EXPECT(lseek(copy, 0, SEEK_CUR) == at && lseek(high, 0, SEEK_CUR) == at);
    EXPECT(lseek(other, 0, SEEK_CUR) == 0);
    EXPECT(lseek(high, 7, SEEK_CUR) == at + 7 && lseek(one, 0, SEEK_CUR) == at + 7);
    EXPECT(lseek(copy, at, SEEK_SET) == at);
    EXPECT(is_cloexec(high) && !is_cloexec(copy) && !is_cloexec(one));
    int flags = flags_of(one);
    EXPECT(fcntl(copy, F_SETFL, flags | O_APPEND) == 0 && (flags_of(high) & O_APPEND));
    EXPECT(!(flags_of(other) & O_APPEND) && fcntl(one, F_SETFL, flags) == 0);
    return NULL;
}

static const char *change(int n) {
    at = 1000 * n;
    return lseek(one, at, SEEK_SET) == at ? NULL : "lseek";
}

static const char *verify(int n) {
    EXPECT(at == 1000 * n);
    return check();
}
