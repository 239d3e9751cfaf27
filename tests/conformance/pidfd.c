/* A pidfd of the process itself. */
#include "conform.h"

static int fd, sent;
static volatile sig_atomic_t got;

static void on_signal(int signal) { got += signal == SIGUSR1; }

static const char *setup(void) {
    signal(SIGUSR1, on_signal);
    fd = (int)syscall(SYS_pidfd_open, getpid(), O_NONBLOCK);
    EXPECT(fd >= 0);
    return NULL;
}

static const char *tell(void) {
    EXPECT(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0) == 0);
    sent++;
    return NULL;
}

static const char *check(void) {
    TRY(tell());
    EXPECT(got == sent && is_cloexec(fd) && (flags_of(fd) & O_NONBLOCK) && !readable(fd));
    return NULL;
}

static const char *change(int n) {
    for (int i = 0; i < n; i++) TRY(tell());
    return NULL;
}

static const char *verify(int n) {
    EXPECT(sent > n);
    return check();
}
