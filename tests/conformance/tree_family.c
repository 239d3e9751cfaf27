/* Who is whose: a pidfd and F_SETOWN of members, a member that dies with its parent, one that leads
 * a group, as one does that has ended; an orphan that a subreaper has taken; a thread that
 * waits for a child; signals that wait in a member, and its timers. */
/* Prepared with --tree */
#include "tree.h"
#include <pthread.h>
#include <sys/pidfd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif
enum { PENDING, TIMER, ORPHAN, HEARD, FATHER };
static struct member plain, dies, follower, signalled, middle;
static int pidfd, told[2], waited, group;
static volatile int heard;
static pid_t *orphan, zombie, ends, aborted, timed_out;
static timer_t clockwork;

static void hears(int signal) { heard = signal; }

static const char *works(int what, int n) {
    sigset_t set;
    struct itimerspec left;
    if (what == PENDING) {
        EXPECT(sigpending(&set) == 0 && sigismember(&set, SIGUSR2) == n);
        EXPECT(sigismember(&set, SIGRTMIN + 3) == n);
    }
    if (what == TIMER) {
        EXPECT(timer_gettime(clockwork, &left) == 0);
        EXPECT(left.it_value.tv_sec > 9000 && left.it_interval.tv_sec == 5000);
    }
    if (what == HEARD) {
        if (n == 0) {
            EXPECT(heard == 0);
            return NULL;
        }
        for (int i = 0; i < 100 && heard != n; i++) usleep(10000);
        EXPECT(heard == n);
    }
    if (what == FATHER) {
        int signal = 0;
        EXPECT(prctl(PR_GET_PDEATHSIG, &signal) == 0 && signal == SIGUSR1);
        EXPECT(getppid() > 1);
    }
    return NULL;
}

static void listens(void) { signal(SIGIO, hears); }
static void with_father(void) { prctl(PR_SET_PDEATHSIG, SIGUSR1); }
static void joins(void) {
    if (setpgid(0, zombie) != 0) _exit(8);
}
static void with_signals(void) {
    sigset_t set;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 4};
    struct itimerspec time = {{5000, 0}, {10000, 0}};
    sigemptyset(&set), sigaddset(&set, SIGUSR2), sigaddset(&set, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR2);
    sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 42});
    if (timer_create(CLOCK_MONOTONIC, &event, &clockwork) != 0) _exit(9);
    timer_settime(clockwork, 0, &time, NULL);
}
/* Ends at once, and leaves an orphan. */
static void double_fork(void) {
    pid_t pid = fork();
    if (pid == 0) {
        pid_t left = fork();
        if (left == 0) {
            for (;;) pause();
        }
        *orphan = left;
        _exit(0);
    }
    waitpid(pid, NULL, 0);
}

static void *waits(void *unused) {
    int status;
    (void)unused;
    if (waitpid(ends, &status, 0) == ends && WIFEXITED(status)) waited = 1 + WEXITSTATUS(status);
    return NULL;
}

static const char *setup(void) {
    pthread_t thread;
    int ends_by[2];
    siginfo_t info;
    orphan = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(orphan != MAP_FAILED && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    EXPECT((zombie = fork()) >= 0);
    if (zombie == 0) {
        setpgid(0, 0);
        for (;;) pause();
    }
    for (int i = 0; i < 100 && getpgid(zombie) != zombie; i++) usleep(10000);
    TRY(begin(&follower, joins, works));
    EXPECT(tell(&follower, HEARD, 0) == NULL && getpgid(follower.pid) == zombie);
    EXPECT(kill(zombie, SIGKILL) == 0);
    EXPECT(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT) == 0);
    group = zombie;
    EXPECT((aborted = fork()) >= 0);
    if (aborted == 0) {
        prctl(PR_SET_DUMPABLE, 0);
        kill(getpid(), SIGABRT);
    }
    EXPECT((timed_out = fork()) >= 0);
    if (timed_out == 0) {
        kill(getpid(), SIGTERM);
        pause();
    }
    EXPECT(waitid(P_PID, (id_t)aborted, &info, WEXITED | WNOWAIT) == 0);
    EXPECT(waitid(P_PID, (id_t)timed_out, &info, WEXITED | WNOWAIT) == 0);
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, told) == 0 && pipe(ends_by) == 0);
    TRY(begin(&plain, listens, works));
    TRY(tell(&plain, HEARD, 0));
    TRY(begin(&dies, with_father, works));
    TRY(begin(&signalled, with_signals, works));
    TRY(begin(&middle, double_fork, works));
    TRY(tell(&middle, HEARD, 0));
    EXPECT((pidfd = (int)syscall(SYS_pidfd_open, plain.pid, 0)) >= 0);
    EXPECT(fcntl(told[0], F_SETOWN, plain.pid) == 0);
    EXPECT(fcntl(told[0], F_SETFL, O_RDWR | O_ASYNC) == 0);
    EXPECT((ends = fork()) >= 0);
    if (ends == 0) {
        close(ends_by[1]), close(CONTROL_FD);
        char byte = 9;
        _exit(read(ends_by[0], &byte, 1) == 1 ? byte : 99);
    }
    told[0] = fcntl(told[0], F_DUPFD, 0), close(ends_by[0]);
    EXPECT(fcntl(ends_by[1], F_DUPFD, 220) == 220 && close(ends_by[1]) == 0);
    return pthread_create(&thread, NULL, waits, NULL) == 0 ? NULL : "thread";
}

static const char *killed_by(pid_t pid, int signal) {
    siginfo_t info = {0};
    EXPECT(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT | WNOHANG) == 0);
    EXPECT(info.si_pid == pid && info.si_code == CLD_KILLED && info.si_status == signal);
    return NULL;
}

static const char *check(void) {
    char path[64], text[64] = "";
    EXPECT(syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) == 0 && !readable(pidfd));
    EXPECT(fcntl(told[0], F_GETOWN) == plain.pid);
    TRY(tell(&plain, HEARD, 0));
    TRY(tell(&dies, FATHER, 0));
    TRY(tell(&signalled, PENDING, 1));
    TRY(tell(&signalled, TIMER, 0));
    EXPECT(getpgid(follower.pid) == group && kill(-group, 0) == 0);
    TRY(killed_by(zombie, SIGKILL));
    TRY(killed_by(aborted, SIGABRT));
    TRY(killed_by(timed_out, SIGTERM));
    int subreaper = 0;
    EXPECT(prctl(PR_GET_CHILD_SUBREAPER, &subreaper) == 0 && subreaper == 1);
    snprintf(path, sizeof path, "/proc/%d/stat", *orphan);
    int fd = open(path, O_RDONLY), parent = 0;
    EXPECT(fd >= 0 && read(fd, text, sizeof text - 1) > 0 && close(fd) == 0);
    EXPECT(sscanf(strrchr(text, ')'), ") %*c %d", &parent) == 1 && parent == getpid());
    EXPECT(waited == 0 && getsid(*orphan) == getsid(0));
    return NULL;
}

static const char *change(int n) {
    EXPECT(write(told[1], "x", 1) == 1);
    TRY(tell(&plain, HEARD, SIGIO));
    EXPECT(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) == 0);
    EXPECT(waitpid(plain.pid, NULL, 0) == plain.pid && readable(pidfd));
    char byte = (char)n;
    EXPECT(write(220, &byte, 1) == 1);
    for (int i = 0; i < 200 && waited == 0; i++) usleep(10000);
    EXPECT(waited == 1 + n);
    EXPECT(waitpid(timed_out, NULL, WNOHANG) == timed_out);
    EXPECT(kill(*orphan, SIGKILL) == 0 && waitpid(*orphan, NULL, 0) == *orphan);
    return NULL;
}

static const char *verify(int n) {
    EXPECT(waited == 1 + n && getpgid(follower.pid) == group);
    EXPECT(syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) == -1 && errno == ESRCH);
    TRY(killed_by(zombie, SIGKILL));
    TRY(killed_by(aborted, SIGABRT));
    EXPECT(waitpid(timed_out, NULL, WNOHANG) == -1 && errno == ECHILD);
    TRY(tell(&signalled, PENDING, 1));
    return tell(&dies, FATHER, 0);
}
