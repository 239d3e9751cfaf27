/* What names a thread of the process: files of /proc, pidfds, a timer on its CPU time that it has made
 * itself. Of one that has ended, too. */
/* Before Linux 6.9 a node refuses: a pidfd of a thread (PIDFD_THREAD, Linux 6.9) */
#include "conform.h"
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static volatile pid_t thread_id, short_id;
static volatile sig_atomic_t busy, expired, end_short;
static int comm, tasks, gone, pidfd, gone_pidfd, leader, epoll, pidfds;
static timer_t cpu;

static void on_timer(int signal) { expired += signal == SIGRTMIN + 2; }

static void *worker(void *arg) {
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2};
    thread_id = (pid_t)syscall(SYS_gettid);
    event._sigev_un._tid = thread_id;
    prctl(PR_SET_NAME, "worker");
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &cpu) != 0) return arg;
    for (volatile unsigned turn = 0;; turn++) {
        if (!busy) usleep(1000);
    }
    return arg;
}

static void *short_one(void *arg) {
    short_id = (pid_t)syscall(SYS_gettid);
    while (!end_short) usleep(1000);
    return arg;
}

static int of(pid_t tid, const char *name, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/%s", (int)tid, name);
    return open(path, flags);
}

static const char *setup(void) {
    pthread_t first, second;
    struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = 8}};
    EXPECT(signal(SIGRTMIN + 2, on_timer) != SIG_ERR);
    EXPECT(pthread_create(&first, NULL, worker, NULL) == 0);
    EXPECT(pthread_create(&second, NULL, short_one, NULL) == 0);
    while (thread_id == 0 || short_id == 0) usleep(1000);
    comm = of(thread_id, "comm", O_RDWR | O_CLOEXEC);
    tasks = of(thread_id, "fdinfo", O_RDONLY | O_DIRECTORY);
    gone = of(short_id, "comm", O_RDONLY);
    epoll = epoll_create1(0);
    EXPECT(comm >= 0 && tasks >= 0 && gone >= 0 && epoll >= 0);
    pidfds = since(6, 9, "PIDFD_THREAD");
    if (pidfds) {
        pidfd = (int)syscall(SYS_pidfd_open, thread_id, PIDFD_THREAD | O_NONBLOCK);
        gone_pidfd = (int)syscall(SYS_pidfd_open, short_id, PIDFD_THREAD);
        leader = (int)syscall(SYS_pidfd_open, getpid(), PIDFD_THREAD);
        EXPECT(pidfd >= 0 && gone_pidfd >= 0 && leader >= 0);
        EXPECT(epoll_ctl(epoll, EPOLL_CTL_ADD, pidfd, &event) == 0);
    }
    end_short = 1;
    return pthread_join(second, NULL) == 0 ? NULL : "pthread_join";
}

static char name[16] = "worker";

static const char *pidfds_hold(void) {
    struct epoll_event event;
    EXPECT(flags_of(pidfd) & O_NONBLOCK);
    EXPECT(!readable(pidfd) && !readable(leader) && readable(gone_pidfd));
    EXPECT(syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) == 0);
    EXPECT(epoll_wait(epoll, &event, 1, 0) == 0);
    EXPECT(epoll_ctl(epoll, EPOLL_CTL_MOD, pidfd, &(struct epoll_event){.events = EPOLLIN}) == 0);
    return NULL;
}

static const char *holds(void) {
    char text[32] = "", path[32];
    ssize_t len = (ssize_t)strlen(name);
    EXPECT(pread(comm, text, sizeof text, 0) == len + 1 && !memcmp(text, name, (size_t)len));
    EXPECT(is_cloexec(comm));
    snprintf(path, sizeof path, "%d", comm);
    EXPECT(faccessat(tasks, path, F_OK, 0) == 0);
    EXPECT(pread(gone, text, sizeof text, 0) == -1 && errno == ESRCH);
    if (pidfds) TRY(pidfds_hold());
    /* The clock is that of the worker, whatever this thread does. */
    struct itimerspec soon = {.it_value.tv_nsec = 20 * 1000 * 1000};
    sig_atomic_t before = expired;
    EXPECT(timer_settime(cpu, 0, &soon, NULL) == 0);
    busy = 1;
    for (int i = 0; i < 10000 && expired == before; i++) usleep(1000);
    busy = 0;
    return expired > before ? NULL : "the timer did not expire";
}

static const char *check(void) { return holds(); }
static const char *change(int n) {
    snprintf(name, sizeof name, "worker %d", n);
    return write(comm, name, strlen(name)) == (ssize_t)strlen(name) ? NULL : "comm";
}
static const char *verify(int n) { return n > 0 ? holds() : "no"; }
