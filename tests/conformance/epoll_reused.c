/* Epoll registrations whose numbers name other files by now, or nothing: what they watch is what they
 * were added for, as long as something holds it. */
#include "conform.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int epoll, ends[2], copy, now, closed[2], closed_copy, both[2], twice;
static uint64_t tag = 7;

static const char *add(int fd, uint64_t data) {
    struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = data}};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? NULL : "epoll_ctl";
}

static const char *setup(void) {
    epoll = epoll_create1(0);
    EXPECT(epoll >= 0 && pipe(ends) == 0 && pipe(closed) == 0 && pipe(both) == 0);
    TRY(add(ends[0], tag));
    /* The registration lives on with the copy; its number names another file, close-on-exec. */
    copy = dup(ends[0]);
    now = eventfd(0, 0);
    EXPECT(copy >= 0 && now >= 0 && dup3(now, ends[0], O_CLOEXEC) == ends[0]);
    /* A high number, then closed. */
    EXPECT(dup2(closed[0], 150) == 150);
    TRY(add(150, 8));
    EXPECT(close(150) == 0);
    closed_copy = closed[0];
    /* Two registrations under one number. */
    twice = dup(both[0]);
    TRY(add(twice, 9));
    EXPECT(dup2(now, twice) == twice);
    TRY(add(twice, 10));
    return NULL;
}

/* The only thing that is ready is what `data` stands for. */
static const char *ready(uint64_t data) {
    struct epoll_event events[8];
    EXPECT(epoll_wait(epoll, events, 8, 0) == 1);
    EXPECT(events[0].data.u64 == data && events[0].events == EPOLLIN);
    return NULL;
}

static const char *piped(int to, int from, uint64_t data) {
    char byte = 0;
    EXPECT(write(to, "x", 1) == 1);
    TRY(ready(data));
    EXPECT(read(from, &byte, 1) == 1 && byte == 'x');
    return NULL;
}

static const char *holds(uint64_t wanted) {
    uint64_t count = 3;
    struct epoll_event event;
    EXPECT(tag == wanted);
    TRY(piped(ends[1], copy, 7));
    TRY(piped(closed[1], closed_copy, 8));
    TRY(piped(both[1], both[0], 9));
    EXPECT(write(now, &count, 8) == 8);
    TRY(ready(10));
    EXPECT(read(ends[0], &count, 8) == 8 && count == 3);
    EXPECT(is_cloexec(ends[0]) && !is_cloexec(twice));
    EXPECT(fcntl(150, F_GETFD) == -1 && errno == EBADF);
    EXPECT(epoll_wait(epoll, &event, 1, 0) == 0);
    return NULL;
}

static const char *check(void) { return holds(7); }
static const char *change(int n) {
    tag = 10 + (uint64_t)n;
    /* Two numbers are free for registrations of their own again. */
    TRY(add(ends[0], tag));
    uint64_t count = 1;
    struct epoll_event events[4];
    EXPECT(write(now, &count, 8) == 8 && epoll_wait(epoll, events, 4, 0) == 2);
    EXPECT(read(now, &count, 8) == 8);
    return epoll_ctl(epoll, EPOLL_CTL_DEL, ends[0], NULL) == 0 ? NULL : "EPOLL_CTL_DEL";
}
static const char *verify(int n) { return holds(10 + (uint64_t)n); }
