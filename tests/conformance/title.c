/* What /proc says that the process is: executable, command line (also one that it has rewritten),
 * environment, name, auxiliary vector. */
#include "conform.h"
#include <sys/auxv.h>
#include <sys/prctl.h>

extern char **environ;
static char name[16] = "conform-title", *line;
static unsigned long random_at, page_size;

static size_t slurp(const char *path, char *out, size_t len) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, out, len);
    close(fd);
    return got < 0 ? 0 : (size_t)got;
}

static const char *setup(void) {
    char now[4096];
    size_t len = slurp("/proc/self/cmdline", now, sizeof now);
    EXPECT(len > 4);
    /* As setproctitle(3) does: over the arguments, which lie before the environment. */
    char *start = environ[0] - len;
    EXPECT(memcmp(start, now, len) == 0);
    line = start;
    memcpy(line, "re", 2);
    random_at = getauxval(AT_RANDOM), page_size = getauxval(AT_PAGESZ);
    return prctl(PR_SET_NAME, name) == 0 ? NULL : "PR_SET_NAME";
}

static const char *check(void) {
    char now[4096], target[4096] = {0};
    /* The kernel does not wait for a page that is missing: /proc shows what has been touched. */
    (void)*(volatile const char *)line;
    (void)*(volatile const char *)environ[0];
    EXPECT(slurp("/proc/self/cmdline", now, sizeof now) > 4 && memcmp(now, line, 4) == 0);
    size_t len = slurp("/proc/self/environ", now, sizeof now);
    EXPECT(len > 0 && strncmp(now, environ[0], strlen(environ[0]) + 1) == 0);
    EXPECT(slurp("/proc/self/comm", now, sizeof now) == strlen(name) + 1);
    EXPECT(memcmp(now, name, strlen(name)) == 0);
    EXPECT(readlink("/proc/self/exe", target, sizeof target - 1) > 8);
    EXPECT(!strcmp(target + strlen(target) - 8, "/program"));
    unsigned long *words = (unsigned long *)now;
    len = slurp("/proc/self/auxv", now, sizeof now);
    int found = 0;
    for (size_t i = 0; i + 1 < len / 8; i += 2) {
        if (words[i] == AT_RANDOM) found += words[i + 1] == random_at;
        if (words[i] == AT_PAGESZ) found += words[i + 1] == page_size;
    }
    EXPECT(found == 2);
    return NULL;
}

static const char *change(int n) {
    snprintf(name, sizeof name, "changed-%d", n);
    line[0] = (char)('0' + n);
    return prctl(PR_SET_NAME, name) == 0 ? NULL : "PR_SET_NAME";
}

static const char *verify(int n) {
    EXPECT(line[0] == '0' + n);
    return check();
}
