/* One description in several processes: the offset of a file opened to append, and of a deleted one;
 * an epoll, an eventfd, a timerfd, a signalfd and an inotify that a fork has left to both; a
 * listener on which workers wait; a lock. */
/* Prepared with --tree */
#include "tree.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

enum { APPEND, DELETED, COUNT, ARM, SIGNALS, WATCHES, LOCKS };
static struct member one, two, workers[2];
static int append, deleted, events, timer, signals, watch, epoll, listener, lock;
static int watched, accepted[2];

const char *files(void) {
    unlink("appended");
    TRY(write_file("appended", "", 0));
    TRY(write_file("watched", "x", 1));
    return write_file("locked", "x", 1);
}

static const char *works(int what, int n) {
    uint64_t count;
    char text[64];
    struct epoll_event event;
    if (what == APPEND) EXPECT(write(append, "member", 6) == 6);
    if (what == DELETED) {
        EXPECT(read(deleted, text, 4) == 4 && lseek(deleted, 0, SEEK_CUR) == n);
        EXPECT(memcmp(text, "0123456789abcdef" + n - 4, 4) == 0);
    }
    if (what == COUNT) {
        EXPECT(epoll_wait(epoll, &event, 1, 0) == 1 && event.data.u64 == 77);
        EXPECT(read(events, &count, 8) == 8 && count == (uint64_t)n);
        EXPECT(epoll_wait(epoll, &event, 1, 0) == 0);
    }
    if (what == ARM) {
        struct itimerspec left;
        EXPECT(timerfd_gettime(timer, &left) == 0);
        EXPECT(n == 0 ? left.it_value.tv_sec > 50000 : left.it_value.tv_sec > 80000);
    }
    if (what == SIGNALS) {
        struct signalfd_siginfo info;
        EXPECT(kill(getpid(), SIGUSR1) == 0 && read(signals, &info, sizeof info) == sizeof info);
        EXPECT(info.ssi_signo == SIGUSR1 && (pid_t)info.ssi_pid == getpid());
    }
    if (what == LOCKS) EXPECT(flock(lock, LOCK_EX | LOCK_NB) == 0);
    return NULL;
}

static void accepts(void) {
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pid_t own = getpid();
        if (fd < 0 || write(fd, &own, sizeof own) != sizeof own || close(fd) != 0) _exit(4);
    }
}

static const char *setup(void) {
    sigset_t set;
    struct itimerspec hours = {.it_value = {60000, 0}};
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8111)};
    EXPECT((append = open("appended", O_RDWR | O_APPEND)) >= 0);
    EXPECT((deleted = open("deleted", O_RDWR | O_CREAT, 0600)) >= 0 && unlink("deleted") == 0);
    EXPECT(write(deleted, "0123456789abcdef", 16) == 16 && lseek(deleted, 4, SEEK_SET) == 4);
    EXPECT((events = eventfd(3, EFD_NONBLOCK)) >= 0);
    EXPECT((timer = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0);
    EXPECT(timerfd_settime(timer, 0, &hours, NULL) == 0);
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    EXPECT(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    EXPECT((signals = signalfd(-1, &set, SFD_NONBLOCK)) >= 0);
    EXPECT((watch = inotify_init1(IN_NONBLOCK)) >= 0);
    EXPECT((watched = inotify_add_watch(watch, "watched", IN_ATTRIB)) >= 0);
    EXPECT((epoll = epoll_create1(0)) >= 0);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77};
    EXPECT(epoll_ctl(epoll, EPOLL_CTL_ADD, events, &event) == 0);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    int yes = 1;
    EXPECT(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0);
    EXPECT(bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 9) == 0);
    EXPECT((lock = open("locked", O_RDWR)) >= 0 && flock(lock, LOCK_EX) == 0);
    TRY(begin(&one, NULL, works));
    TRY(begin(&two, NULL, works));
    TRY(begin(&workers[0], accepts, NULL));
    TRY(begin(&workers[1], accepts, NULL));
    close(listener);
    return NULL;
}

static const char *check(void) {
    struct epoll_event event;
    EXPECT(epoll_wait(epoll, &event, 1, 0) == 1 && event.data.u64 == 77);
    TRY(tell(&one, ARM, 0));
    TRY(tell(&two, SIGNALS, 0));
    EXPECT(lseek(deleted, 0, SEEK_CUR) == 4 && kill(workers[0].pid, 0) == 0);
    return NULL;
}

static const char *change(int n) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8111)};
    struct itimerspec days = {.it_value = {90000, 0}};
    struct stat stat;
    off_t before;
    char text[512];
    EXPECT(fstat(append, &stat) == 0);
    before = stat.st_size;
    TRY(tell(&one, APPEND, n));
    EXPECT(write(append, "root", 4) == 4);
    TRY(tell(&two, APPEND, n));
    EXPECT(pread(append, text, sizeof text, before) == 16);
    EXPECT(!memcmp(text, "memberrootmember", 16) && lseek(append, 0, SEEK_CUR) == before + 16);
    TRY(tell(&one, DELETED, 8));
    TRY(tell(&two, DELETED, 12));
    EXPECT(read(deleted, text, 4) == 4 && !memcmp(text, "cdef", 4));
    uint64_t more = (uint64_t)n;
    EXPECT(write(events, &more, 8) == 8);
    TRY(tell(&two, COUNT, 3 + n));
    EXPECT(timerfd_settime(timer, 0, &days, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        pid_t who;
        EXPECT(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
        EXPECT(read(fd, &who, sizeof who) == sizeof who && close(fd) == 0);
        EXPECT(who == workers[0].pid || who == workers[1].pid);
        accepted[who == workers[1].pid]++;
    }
    if (n == 1) TRY(tell(&one, LOCKS, 0));
    EXPECT(chmod("watched", 0600) == 0);
    struct inotify_event *seen = (void *)text;
    EXPECT(read(watch, text, sizeof text) >= (ssize_t)sizeof *seen && seen->wd == watched);
    return NULL;
}

static const char *verify(int n) {
    struct epoll_event event;
    EXPECT(accepted[0] + accepted[1] == 20 && n > 0);
    EXPECT(lseek(deleted, 0, SEEK_CUR) == 16);
    EXPECT(epoll_wait(epoll, &event, 1, 0) == 0);
    TRY(tell(&one, ARM, 1));
    return tell(&two, ARM, 1);
}
