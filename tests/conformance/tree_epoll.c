/* An epoll instance that processes share, with files that only one of them has: what only the root has,
 * what only a later member added and holds, what a member added under a number that is another
 * file's by now, and what was added by one that has no more of the instance. */
/* Prepared with --tree */
#include "tree.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum { POST, TAKE, WAITS };
static struct member adds, again, away;
static int epoll, own, file;

static const char *works(int what, int n) {
    eventfd_t value;
    struct epoll_event event;
    if (what == POST) EXPECT(eventfd_write(file, (eventfd_t)n) == 0);
    if (what == TAKE) EXPECT(eventfd_read(file, &value) == 0 && value == (eventfd_t)n);
    if (what == WAITS) {
        EXPECT(epoll_wait(epoll, &event, 1, 1000) == 1);
        EXPECT(event.data.u64 == (uint64_t)n);
    }
    return NULL;
}

static void add(uint64_t data) {
    struct epoll_event event = {EPOLLIN, {.u64 = data}};
    file = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (file < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, file, &event) != 0) _exit(5);
}
static void adds_one(void) { add(1001); }
static void adds_under_another(void) {
    add(1002);
    int moved = fcntl(file, F_DUPFD_CLOEXEC, 20);
    if (moved < 0 || dup2(own, file) != file) _exit(6);
    file = moved;
}
static void adds_and_leaves(void) {
    add(1003);
    close(epoll);
}

static const char *setup(void) {
    EXPECT((epoll = epoll_create1(EPOLL_CLOEXEC)) >= 0);
    add(1000);
    own = file;
    TRY(begin(&adds, adds_one, works));
    TRY(begin(&again, adds_under_another, works));
    TRY(begin(&away, adds_and_leaves, works));
    EXPECT(sleeps(adds.pid) && sleeps(again.pid) && sleeps(away.pid));
    return NULL;
}

/* Whoever has the instance hears of each of the files. */
static const char *hears(struct member *who, uint64_t data) {
    struct epoll_event events[8];
    eventfd_t value;
    if (who == NULL) EXPECT(eventfd_write(own, 1) == 0);
    else TRY(tell(who, POST, 1));
    EXPECT(epoll_wait(epoll, events, 8, 1000) == 1 && events[0].data.u64 == data);
    TRY(tell(&adds, WAITS, (int)data));
    TRY(tell(&again, WAITS, (int)data));
    if (who == NULL) EXPECT(eventfd_read(own, &value) == 0 && value == 1);
    else TRY(tell(who, TAKE, 1));
    EXPECT(epoll_wait(epoll, events, 8, 0) == 0);
    return NULL;
}

static const char *check(void) {
    TRY(hears(NULL, 1000));
    TRY(hears(&adds, 1001));
    TRY(hears(&again, 1002));
    return hears(&away, 1003);
}

static const char *change(int n) {
    TRY(tell(&adds, POST, n));
    return tell(&away, POST, 10 + n);
}

static const char *verify(int n) {
    struct epoll_event events[8];
    EXPECT(epoll_wait(epoll, events, 8, 1000) == 2);
    EXPECT(events[0].data.u64 + events[1].data.u64 == 1001 + 1003);
    TRY(tell(&adds, TAKE, n));
    TRY(tell(&away, TAKE, 10 + n));
    TRY(check());
    return change(n);
}
