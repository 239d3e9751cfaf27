/* Private memory of huge pages (hugetlb): a child has its content in ordinary memory. */
#include "conform.h"

#define SIZE (4ul << 20)
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
    TRY(reserve(3));
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at != MAP_FAILED) fill(at, SIZE / 2, 1);
    /* Pages in use go when they are given back. */
    TRY(reserve(-3));
    return at != MAP_FAILED ? NULL : "mmap: no huge pages";
}

static const char *holds(unsigned seed) {
    EXPECT(filled(at, SIZE / 2, seed));
    for (size_t i = SIZE / 2; !is_parent() && i < SIZE; i += 4096) EXPECT(at[i] == 0);
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(at, SIZE / 2, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
