/* Files of /proc: of the process itself, which are a child's own then, and of the machine. */
#include "conform.h"
#include <sys/prctl.h>

static int status, comm, fds, maps, self, memory_info, word = 5;

static const char *setup(void) {
    status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    comm = open("/proc/self/comm", O_RDWR);
    fds = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
    maps = open("/proc/thread-self/maps", O_RDONLY);
    self = open("/proc/self", O_RDONLY | O_DIRECTORY);
    memory_info = open("/proc/meminfo", O_RDONLY);
    EXPECT(status >= 0 && comm >= 0 && fds >= 0 && maps >= 0 && self >= 0 && memory_info >= 0);
    EXPECT(lseek(memory_info, 3, SEEK_SET) == 3);
    return NULL;
}

static const char *says(int fd, off_t from, const char *what) {
    static char text[8192];
    ssize_t got = pread(fd, text, sizeof text - 1, from);
    EXPECT(got > 0);
    text[got] = 0;
    return strstr(text, what) != NULL ? NULL : what;
}

static const char *holds(int wanted) {
    char line[64];
    EXPECT(word == wanted && is_cloexec(status) && lseek(memory_info, 0, SEEK_CUR) == 3);
    snprintf(line, sizeof line, "\nPid:\t%d\n", (int)getpid());
    TRY(says(status, 0, line));
    EXPECT(write(comm, "by-its-fd", 9) == 9);
    char name[16] = "";
    EXPECT(prctl(PR_GET_NAME, name) == 0 && !strcmp(name, "by-its-fd"));
    snprintf(line, sizeof line, "%d", fds);
    EXPECT(faccessat(fds, line, F_OK, 0) == 0 && faccessat(fds, "199", F_OK, 0) == -1);
    TRY(says(maps, 0, " r-xp "));
    int again = openat(self, "status", O_RDONLY);
    EXPECT(again >= 0);
    snprintf(line, sizeof line, "\nPid:\t%d\n", (int)getpid());
    TRY(says(again, 0, line));
    EXPECT(close(again) == 0);
    return says(memory_info, 0, "MemTotal");
}

static const char *check(void) { return holds(5); }
static const char *change(int n) {
    word = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
