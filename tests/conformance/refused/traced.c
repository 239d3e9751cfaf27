/* Refused: is traced by, for there cannot be two tracers. */
#include "conform.h"
#include <sys/prctl.h>
#include <sys/ptrace.h>

static const char *setup(void) {
    int ready[2];
    char byte = 0;
    EXPECT(pipe2(ready, O_CLOEXEC) == 0 && prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY) <= 0);
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        byte = ptrace(PTRACE_SEIZE, getppid(), NULL, NULL) == 0;
        if (write(ready[1], &byte, 1) != 1) _exit(1);
        for (;;) pause();
    }
    EXPECT(read(ready[0], &byte, 1) == 1 && byte == 1);
    return close(ready[0]) == 0 && close(ready[1]) == 0 ? NULL : "close";
}

static const char *check(void) {
    char text[4096] = "";
    int fd = open("/proc/self/status", O_RDONLY);
    ssize_t got = read(fd, text, sizeof text - 1);
    EXPECT(got > 0 && close(fd) == 0 && strstr(text, "TracerPid:\t0\n") == NULL);
    return NULL;
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
