/* Refused: epoll, which watches what a descriptor was before it named another file. */
#include "conform.h"

#include <sys/epoll.h>

static int epoll, ends[2], copy;

static const char *setup(void) {
    struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = 7}};
    epoll = epoll_create1(0);
    EXPECT(epoll >= 0 && pipe(ends) == 0);
    EXPECT(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event) == 0);
    /* The registration lives on with the copy; its number names another file. */
    copy = dup(ends[0]);
    EXPECT(copy >= 0 && dup2(eventfd(0, 0), ends[0]) == ends[0]);
    return NULL;
}

static const char *check(void) {
    struct epoll_event event;
    char byte = 0;
    EXPECT(write(ends[1], "x", 1) == 1);
    EXPECT(epoll_wait(epoll, &event, 1, 0) == 1 && event.data.u64 == 7);
    EXPECT(read(copy, &byte, 1) == 1 && byte == 'x');
    EXPECT(epoll_wait(epoll, &event, 1, 0) == 0);
    return NULL;
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
