/* Refused: hugetlb memory, of which a shared one cannot be copied as other memory is. */
#include "conform.h"

#define SIZE (2ul << 20)
static uint8_t *at;

static const char *reserve(int more) {
    char text[32] = "";
    int fd = open("/proc/sys/vm/nr_hugepages", O_RDWR | O_CLOEXEC);
    EXPECT(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
    int len = snprintf(text, sizeof text, "%d", atoi(text) + more);
    EXPECT(pwrite(fd, text, (size_t)len, 0) == len && close(fd) == 0);
    return NULL;
}

static const char *setup(void) {
    TRY(reserve(2));
    at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (at != MAP_FAILED) at[5] = 1;
    /* Pages in use go when they are given back. */
    TRY(reserve(-2));
    EXPECT(at != MAP_FAILED);
    return NULL;
}

static const char *check(void) { return at[5] == 1 && at[6] == 0 ? NULL : "content"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
