/* An epoll that watches an epoll that watches a pipe; the outer has the lower number. */
#include "conform.h"
#include <sys/epoll.h>

static int outer, inner, ends[2];
static int full;

static const char *setup(void) {
    outer = epoll_create1(0);
    inner = epoll_create1(0);
    EXPECT(outer >= 0 && inner > outer && pipe2(ends, O_NONBLOCK) == 0);
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = 1};
    EXPECT(epoll_ctl(inner, EPOLL_CTL_ADD, ends[0], &e) == 0);
    e.data.u32 = 2;
    EXPECT(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &e) == 0);
    return NULL;
}

static const char *check(void) {
    struct epoll_event e;
    char byte;
    EXPECT(epoll_wait(outer, &e, 1, 0) == full);
    if (!full) EXPECT(write(ends[1], "x", 1) == 1);
    EXPECT(epoll_wait(outer, &e, 1, 0) == 1 && e.data.u32 == 2);
    EXPECT(epoll_wait(inner, &e, 1, 0) == 1 && e.data.u32 == 1);
    if (!full) EXPECT(read(ends[0], &byte, 1) == 1);
    return NULL;
}

static const char *change(int n) {
    if (n == 1) full = write(ends[1], "y", 1) == 1;
    return NULL;
}

static const char *verify(int n) {
    EXPECT(full == (n == 1));
    return check();
}
