/* A file that was deleted after it was opened. */
#include "conform.h"

static int fd;
static unsigned seed = 9;

static const char *setup(void) {
    uint8_t data[10000];
    fill(data, sizeof data, seed);
    TRY(write_file("deleted", data, sizeof data));
    fd = open("deleted", O_RDWR);
    EXPECT(fd >= 0 && unlink("deleted") == 0 && lseek(fd, 77, SEEK_SET) == 77);
    return NULL;
}

static const char *check(void) {
    uint8_t data[10000];
    struct stat st;
    EXPECT(lseek(fd, 0, SEEK_CUR) == 77);
    EXPECT(fstat(fd, &st) == 0 && st.st_size == 10000 && (st.st_mode & 0777) == 0644);
    EXPECT(pread(fd, data, sizeof data, 0) == sizeof data && filled(data, sizeof data, seed));
    return NULL;
}

static const char *change(int n) {
    uint8_t data[10000];
    seed += (unsigned)n;
    fill(data, sizeof data, seed);
    EXPECT(pwrite(fd, data, sizeof data, 0) == sizeof data);
    return NULL;
}

static const char *verify(int n) {
    EXPECT(seed == 9 + (unsigned)n);
    return check();
}
