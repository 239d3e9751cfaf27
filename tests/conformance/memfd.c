/* Memfds: content with a hole, offset, seals; and one that is open for reading only. */
#include "conform.h"

static int open_fd, sealed, reading;
static unsigned seed = 5;
#define FAR (8 << 20)

static const char *setup(void) {
    uint8_t data[5000];
    open_fd = memfd_create("open", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
    EXPECT(open_fd >= 0 && sealed >= 0);
    fill(data, sizeof data, seed);
    EXPECT(write(open_fd, data, sizeof data) == sizeof data);
    EXPECT(pwrite(open_fd, "far", 3, FAR) == 3 && lseek(open_fd, 1234, SEEK_SET) == 1234);
    EXPECT(write(sealed, "kept", 4) == 4);
    EXPECT(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", sealed);
    reading = open(path, O_RDONLY);
    EXPECT(reading >= 0);
    return NULL;
}

static const char *check(void) {
    uint8_t data[5000];
    char got[8];
    struct stat st;
    EXPECT(lseek(open_fd, 0, SEEK_CUR) == 1234 && is_cloexec(open_fd));
    EXPECT(pread(open_fd, data, sizeof data, 0) == sizeof data);
    EXPECT(filled(data, sizeof data, seed));
    EXPECT(pread(open_fd, got, 3, FAR) == 3 && !memcmp(got, "far", 3));
    EXPECT(pread(open_fd, got, 3, FAR / 2) == 3 && !memcmp(got, "\0\0", 3));
    EXPECT(fstat(open_fd, &st) == 0 && st.st_size == FAR + 3 && st.st_blocks < FAR / 1024);
    EXPECT(fcntl(open_fd, F_GET_SEALS) == 0);
    struct stat other;
    EXPECT(fstat(sealed, &st) == 0 && fstat(reading, &other) == 0 && st.st_ino == other.st_ino);
    EXPECT(fcntl(sealed, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
    EXPECT(pread(sealed, got, 8, 0) == 4 && !memcmp(got, "kept", 4));
    EXPECT(pwrite(sealed, "x", 1, 0) == -1 && errno == EPERM);
    EXPECT(pread(reading, got, 8, 0) == 4 && (flags_of(reading) & O_ACCMODE) == O_RDONLY);
    return NULL;
}

static const char *change(int n) {
    uint8_t data[5000];
    seed += (unsigned)n;
    fill(data, sizeof data, seed);
    EXPECT(pwrite(open_fd, data, sizeof data, 0) == sizeof data);
    return NULL;
}

static const char *verify(int n) {
    EXPECT(seed == 5 + (unsigned)n);
    return check();
}
