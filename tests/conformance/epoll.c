/* An epoll: registrations with their data, edge- and level-triggered, ready and not. */
#include "conform.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int ep, level, edge, quiet;
static int extra;

static const char *setup(void) {
    ep = epoll_create1(EPOLL_CLOEXEC);
    level = eventfd(1, 0);
    edge = eventfd(1, EFD_NONBLOCK);
    quiet = eventfd(0, 0);
    EXPECT(ep >= 0 && level >= 0 && edge >= 0 && quiet >= 0);
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0xfedcba9876543210};
    EXPECT(epoll_ctl(ep, EPOLL_CTL_ADD, level, &e) == 0);
    e = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.ptr = &edge};
    EXPECT(epoll_ctl(ep, EPOLL_CTL_ADD, edge, &e) == 0);
    e = (struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.fd = quiet};
    EXPECT(epoll_ctl(ep, EPOLL_CTL_ADD, quiet, &e) == 0);
    return NULL;
}

static const char *check(void) {
    struct epoll_event got[8];
    eventfd_t count;
    EXPECT(is_cloexec(ep));
    EXPECT(eventfd_read(edge, &count) == 0 && eventfd_write(edge, 1) == 0);
    int ready = epoll_wait(ep, got, 8, 0), seen = 0;
    for (int i = 0; i < ready; i++) {
        if (got[i].data.u64 == 0xfedcba9876543210) seen |= got[i].events == EPOLLIN ? 1 : 8;
        else if (got[i].data.ptr == &edge) seen |= got[i].events == EPOLLIN ? 2 : 8;
        else seen |= got[i].data.u64 == 77 ? 4 : 8;
    }
    EXPECT(seen == (3 | extra));
    EXPECT(epoll_wait(ep, got, 8, 0) == (extra ? 2 : 1));
    return NULL;
}

static const char *change(int n) {
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 77};
    if (n == 1) {
        EXPECT(epoll_ctl(ep, EPOLL_CTL_MOD, quiet, &e) == 0 && eventfd_write(quiet, 1) == 0);
        extra = 4;
    } else {
        EXPECT(epoll_ctl(ep, EPOLL_CTL_DEL, quiet, NULL) == 0 && eventfd_write(quiet, 1) == 0);
    }
    return NULL;
}

static const char *verify(int n) {
    EXPECT(extra == (n == 1 ? 4 : 0));
    return check();
}
