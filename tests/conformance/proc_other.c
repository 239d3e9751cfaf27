/* Files of /proc of other processes: to a child these have ended. */
#include "conform.h"
#include <dirent.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static int status, memory, dir, ended, score;

static int of(pid_t pid, const char *name, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    return open(path, flags);
}

static const char *setup(void) {
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    EXPECT(pid > 0);
    status = of(pid, "status", O_RDONLY | O_CLOEXEC);
    memory = of(pid, "maps", O_RDONLY);
    score = of(pid, "oom_score_adj", O_RDWR);
    dir = of(pid, "task", O_RDONLY);
    EXPECT(status >= 0 && memory >= 0 && score >= 0 && dir >= 0);
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    ended = of(pid, "comm", O_RDONLY);
    EXPECT(pid > 0 && ended >= 0 && kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    return NULL;
}

static const char *gone(int fd) {
    char text[16];
    EXPECT(pread(fd, text, sizeof text, 0) == -1 && errno == ESRCH);
    return NULL;
}

static const char *check(void) {
    char text[16];
    TRY(gone(ended));
    EXPECT(is_cloexec(status) && (flags_of(score) & O_ACCMODE) == O_RDWR);
    if (is_parent()) {
        EXPECT(pread(status, text, sizeof text, 0) == sizeof text);
        EXPECT(pread(memory, text, sizeof text, 0) == sizeof text);
        return pread(score, text, sizeof text, 0) > 0 ? NULL : "oom_score_adj";
    }
    TRY(gone(status));
    TRY(gone(memory));
    TRY(gone(score));
    EXPECT(write(score, "0\n", 2) == -1 && errno == ESRCH);
    EXPECT(faccessat(dir, "status", F_OK, 0) == -1 && (errno == ENOENT || errno == ESRCH));
    struct stat stat;
    EXPECT(fstat(dir, &stat) == 0 && S_ISDIR(stat.st_mode));
    return NULL;
}

/* A process of its own is seen. */
static const char *change(int n) {
    char text[8];
    pid_t pid = fork();
    if (pid == 0) {
        for (;;) pause();
    }
    int fd = of(pid, "comm", O_RDONLY);
    EXPECT(n > 0 && pid > 0 && fd >= 0 && read(fd, text, sizeof text) > 0);
    EXPECT(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid && close(fd) == 0);
    return waitpid(-1, NULL, __WALL | WNOHANG) == -1 && errno == ECHILD ? NULL : "a child more";
}
static const char *verify(int n) { return n > 0 ? check() : "no"; }
