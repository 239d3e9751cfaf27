/* Memfds that are sealed and mapped shared: against writing, with mappings that can only be read, and
 * against writing from then on, with one that can still be written. */
#include "conform.h"

#define PAGE 4096ul
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif
#define WRITE_SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)

static int fd, reading, later;
static uint8_t *at, *part, *writable;

static int reopened(int of, int flags) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", of);
    return open(path, flags | O_CLOEXEC);
}

static const char *setup(void) {
    static uint8_t content[16 * PAGE];
    fill(content, sizeof content, 1);
    memset(content + 3 * PAGE, 0, PAGE);
    fd = memfd_create("conform-sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    EXPECT(fd >= 0 && write(fd, content, sizeof content) == sizeof content);
    EXPECT(fcntl(fd, F_ADD_SEALS, WRITE_SEALS) == 0);
    reading = reopened(fd, O_RDONLY);
    at = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, reading, 0);
    part = mmap(NULL, 2 * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, reading, 10 * PAGE);
    EXPECT(reading >= 0 && at != MAP_FAILED && part != MAP_FAILED);
    later = memfd_create("conform-later", MFD_ALLOW_SEALING);
    EXPECT(later >= 0 && ftruncate(later, 2 * PAGE) == 0);
    writable = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, later, 0);
    EXPECT(writable != MAP_FAILED);
    fill(writable, PAGE, 5);
    return fcntl(later, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK) == 0 ? NULL : "seals";
}

static const char *holds(unsigned seed) {
    static uint8_t wanted[16 * PAGE], content[16 * PAGE];
    fill(wanted, sizeof wanted, 1);
    memset(wanted + 3 * PAGE, 0, PAGE);
    EXPECT(fcntl(fd, F_GET_SEALS) == WRITE_SEALS && is_cloexec(fd) && is_cloexec(reading));
    EXPECT(pread(reading, content, sizeof content, 0) == sizeof content);
    EXPECT(!memcmp(content, wanted, sizeof content) && !memcmp(at, wanted, 8 * PAGE));
    EXPECT(!memcmp(part, wanted + 10 * PAGE, 2 * PAGE));
    EXPECT(mprotect(at, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    EXPECT(mprotect(at, PAGE, PROT_READ) == 0);
    EXPECT(pwrite(fd, "x", 1, 0) == -1 && errno == EPERM);
    EXPECT(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
    EXPECT(ftruncate(fd, 0) == -1 && errno == EPERM);
    EXPECT(fcntl(later, F_GET_SEALS) == (F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK));
    EXPECT(filled(writable, PAGE, seed) && writable[PAGE] == 0);
    EXPECT(pread(later, content, PAGE, 0) == PAGE && filled(content, PAGE, seed));
    EXPECT(pwrite(later, "x", 1, 0) == -1 && errno == EPERM);
    EXPECT(ftruncate(later, 3 * PAGE) == 0);
    return NULL;
}

static const char *check(void) { return holds(5); }
static const char *change(int n) {
    fill(writable, PAGE, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
