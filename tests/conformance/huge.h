/* Huge pages for a program: the machine's count is raised until it has them. */
#ifndef HUGE_H
#define HUGE_H
#include "conform.h"
#include <sys/file.h>

/* A number of /proc/meminfo, or -1. */
static int meminfo(const char *key) {
    static char text[8192];
    int at = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    ssize_t got = read(at, text, sizeof text - 1);
    close(at);
    text[got > 0 ? got : 0] = 0;
    const char *line = strstr(text, key);
    return line == NULL ? -1 : atoi(line + strlen(key));
}

static const char *reserve(int count) {
    char text[32];
    int at = open("/proc/sys/vm/nr_hugepages", O_WRONLY | O_CLOEXEC);
    int len = snprintf(text, sizeof text, "%d", count);
    EXPECT(at >= 0 && write(at, text, (size_t)len) == len && close(at) == 0);
    return NULL;
}

/* Calls `map` while there are `count` free. Pages that are in use but were given back count beside the
 * others, and are the first that become free ones. One program at a time: all nodes have the same
 * /dev/null. */
static const char *with_huge_pages(int count, const char *(*map)(void)) {
    int lock = open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT(lock >= 0 && flock(lock, LOCK_EX) == 0);
    int all = meminfo("HugePages_Total:"), beside = meminfo("HugePages_Surp:");
    EXPECT(all >= 0 && beside >= 0);
    TRY(reserve(all + count));
    const char *wrong_there = map();
    /* Pages in use go when they are given back. */
    TRY(reserve(all - beside));
    EXPECT(close(lock) == 0);
    return wrong_there;
}
#endif
