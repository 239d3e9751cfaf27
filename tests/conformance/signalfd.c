/* A signalfd: its mask, and that signals sent to the process come out of it. */
#include "conform.h"
#include <sys/signalfd.h>

static int fd, wanted = SIGUSR1;

static const char *set_mask(int signal) {
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, signal);
    sigaddset(&mask, SIGRTMIN + 3);
    EXPECT(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
    fd = signalfd(fd, &mask, fd == -1 ? SFD_NONBLOCK | SFD_CLOEXEC : 0);
    EXPECT(fd >= 0);
    wanted = signal;
    return NULL;
}

static const char *setup(void) {
    fd = -1;
    return set_mask(SIGUSR1);
}

static const char *check(void) {
    struct signalfd_siginfo info;
    EXPECT(is_cloexec(fd) && (flags_of(fd) & O_NONBLOCK));
    EXPECT(read(fd, &info, sizeof info) == -1 && errno == EAGAIN);
    EXPECT(kill(getpid(), wanted) == 0);
    EXPECT(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == (unsigned)wanted);
    EXPECT(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 99}) == 0);
    EXPECT(read(fd, &info, sizeof info) == sizeof info && info.ssi_int == 99);
    return NULL;
}

static const char *change(int n) { return set_mask(n == 1 ? SIGUSR2 : SIGHUP); }

static const char *verify(int n) {
    EXPECT(wanted == (n == 1 ? SIGUSR2 : SIGHUP));
    return check();
}
