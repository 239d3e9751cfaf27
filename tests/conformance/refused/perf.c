/* Refused: perf_event, which counts what happens on the parent's CPUs. */
#include "conform.h"
#include <linux/perf_event.h>

static int fd;

static const char *setup(void) {
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr,
                                   .config = PERF_COUNT_SW_PAGE_FAULTS, .exclude_kernel = 1};
    fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
    EXPECT(fd >= 0);
    return NULL;
}

static const char *check(void) {
    uint64_t count;
    return read(fd, &count, sizeof count) == sizeof count ? NULL : "read";
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
