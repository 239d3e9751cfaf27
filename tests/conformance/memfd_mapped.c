/* A memfd that is open and mapped at the same time, open twice, sealed against growing, mapped in
 * part: whatever way it is written, all others show it. So too a deleted file. */
#include "conform.h"

#define PAGE 4096ul
static int fd, again, gone;
static uint8_t *at, *other;

static const char *setup(void) {
    static uint8_t content[16 * PAGE];
    char path[64];
    fill(content, sizeof content, 1);
    fd = memfd_create("conform-both", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    EXPECT(fd >= 0 && write(fd, content, sizeof content) == sizeof content);
    at = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4 * PAGE);
    EXPECT(at != MAP_FAILED && fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    again = open(path, O_RDONLY);
    gone = open("gone", O_RDWR | O_CREAT | O_TRUNC, 0600);
    EXPECT(again >= 0 && gone >= 0 && unlink("gone") == 0);
    EXPECT(write(gone, content, 2 * PAGE) == 2 * (ssize_t)PAGE);
    other = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, gone, 0);
    EXPECT(other != MAP_FAILED && lseek(again, 100, SEEK_SET) == 100);
    return NULL;
}

static const char *holds(unsigned seed) {
    static uint8_t content[16 * PAGE], wanted[16 * PAGE];
    fill(wanted, sizeof wanted, 1);
    fill(wanted + 5 * PAGE, PAGE, seed);
    EXPECT(pread(again, content, sizeof content, 0) == sizeof content);
    EXPECT(memcmp(content, wanted, sizeof content) == 0);
    EXPECT(memcmp(at, wanted + 4 * PAGE, 8 * PAGE) == 0);
    EXPECT(pwrite(fd, "through the fd", 14, 6 * PAGE) == 14);
    EXPECT(memcmp(at + 2 * PAGE, "through the fd", 14) == 0);
    memcpy(at + 2 * PAGE, wanted + 6 * PAGE, 14);
    EXPECT(pread(again, content, 14, 6 * PAGE) == 14 && !memcmp(content, wanted + 6 * PAGE, 14));
    EXPECT(fcntl(fd, F_GET_SEALS) == (F_SEAL_GROW | F_SEAL_SHRINK) && is_cloexec(fd));
    EXPECT(ftruncate(fd, 17 * PAGE) == -1 && errno == EPERM);
    EXPECT(lseek(again, 0, SEEK_CUR) == 100 && lseek(fd, 0, SEEK_CUR) == 16 * PAGE);
    fill(wanted, 2 * PAGE, 1);
    EXPECT(memcmp(other, wanted, 2 * PAGE - 1) == 0 && other[2 * PAGE - 1] == (uint8_t)seed);
    EXPECT(pread(gone, content, 1, 2 * PAGE - 1) == 1 && content[0] == (uint8_t)seed);
    return NULL;
}

static const char *change_to(unsigned seed) {
    fill(at + PAGE, PAGE, seed);
    other[2 * PAGE - 1] = (uint8_t)seed;
    return NULL;
}

static const char *check(void) {
    static uint8_t first;
    if (first++ == 0 && is_parent()) TRY(change_to(77));
    return holds(77);
}
static const char *change(int n) { return change_to(10 + (unsigned)n); }
static const char *verify(int n) { return holds(10 + (unsigned)n); }
