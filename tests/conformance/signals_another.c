/* A descriptor that signals another process: a child's signals nobody, until it is told whom. */
#include "conform.h"
#include <sys/prctl.h>

static int ends[2], socket_fd;
static pid_t other;
static volatile sig_atomic_t told;

static void on_io(int signal) { told += signal == SIGIO; }

static const char *setup(void) {
    other = fork();
    if (other == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGIO, SIG_IGN);
        for (;;) pause();
    }
    socket_fd = socket(AF_INET, SOCK_DGRAM, 0);
    EXPECT(other > 0 && pipe(ends) == 0 && fcntl(ends[0], F_SETOWN, other) == 0);
    EXPECT(fcntl(ends[0], F_SETSIG, SIGRTMIN) == 0 && fcntl(socket_fd, F_SETOWN, other) == 0);
    EXPECT(signal(SIGIO, on_io) != SIG_ERR);
    return fcntl(ends[0], F_SETFL, O_ASYNC) == 0 ? NULL : "O_ASYNC";
}

static const char *own(pid_t wanted) {
    char byte;
    EXPECT(flags_of(ends[0]) & O_ASYNC);
    EXPECT(fcntl(ends[0], F_GETOWN) == wanted);
    EXPECT(write(ends[1], "x", 1) == 1 && read(ends[0], &byte, 1) == 1);
    return NULL;
}

static const char *check(void) {
    EXPECT(fcntl(ends[0], F_GETSIG) == SIGRTMIN);
    EXPECT(fcntl(socket_fd, F_GETOWN) == (is_parent() ? other : 0));
    return own(is_parent() ? other : 0);
}

static const char *change(int n) {
    EXPECT(n > 0 && fcntl(ends[0], F_SETSIG, 0) == 0);
    EXPECT(fcntl(ends[0], F_SETOWN, getpid()) == 0);
    return NULL;
}

static const char *verify(int n) {
    int before = told;
    EXPECT(n > 0);
    TRY(own(getpid()));
    for (int i = 0; i < 5000 && told == before; i++) usleep(1000);
    return told > before ? NULL : "no signal came";
}
