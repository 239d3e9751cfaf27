/* inotify: watches with numbers and masks on a file, a directory and the root of a file system,
 * read by a thread. */
#include "conform.h"
#include <pthread.h>
#include <sys/inotify.h>

static int fd, file, dir, once, unused;
static uint32_t seen[16];
static int saw_name;

const char *files(void) {
    EXPECT(mkdir("watched", 0755) == 0 || errno == EEXIST);
    TRY(write_file("watched/a file", "x", 1));
    return write_file("once", "x", 1);
}

static void *reader(void *arg) {
    char buffer[4096];
    for (;;) {
        ssize_t got = read(fd, buffer, sizeof buffer);
        for (char *at = buffer; got > 0 && at < buffer + got;) {
            struct inotify_event *event = (struct inotify_event *)at;
            if (event->wd > 0 && event->wd < 16) __atomic_or_fetch(&seen[event->wd], event->mask, __ATOMIC_SEQ_CST);
            if (event->len > 0 && !strcmp(event->name, "a file")) saw_name = 1;
            at += sizeof *event + event->len;
        }
    }
    return arg;
}

static const char *setup(void) {
    pthread_t thread;
    fd = inotify_init1(IN_CLOEXEC);
    unused = inotify_add_watch(fd, "/", IN_CREATE);
    EXPECT(inotify_rm_watch(fd, unused) == 0);
    file = inotify_add_watch(fd, "watched/a file", IN_MODIFY);
    unused = inotify_add_watch(fd, "/usr", IN_CREATE);
    dir = inotify_add_watch(fd, "watched", IN_CLOSE_WRITE | IN_ONLYDIR);
    once = inotify_add_watch(fd, "once", IN_ATTRIB | IN_ONESHOT);
    EXPECT(file == 2 && dir == 4 && once == 5 && inotify_rm_watch(fd, unused) == 0);
    return pthread_create(&thread, NULL, reader, NULL) == 0 ? NULL : "pthread_create";
}

static const char *wait_for(int number, uint32_t mask) {
    for (int i = 0; i < 10000; i++) {
        if (__atomic_load_n(&seen[number], __ATOMIC_SEQ_CST) & mask) return NULL;
        usleep(1000);
    }
    return "an event did not come";
}

static const char *check(void) {
    /* The other way round than the reader: what a sibling just did may still be on its way. */
    saw_name = 0;
    seen[file] = seen[dir] = 0;
    EXPECT(is_cloexec(fd));
    int other = open("watched/a file", O_WRONLY);
    EXPECT(other >= 0 && write(other, "y", 1) == 1 && close(other) == 0);
    TRY(wait_for(file, IN_MODIFY));
    TRY(wait_for(dir, IN_CLOSE_WRITE));
    EXPECT(saw_name);
    EXPECT(!(seen[dir] & IN_MODIFY));
    EXPECT(!(seen[file] & IN_CLOSE_WRITE));
    return NULL;
}

static const char *change(int n) {
    /* A sibling sees it as well: both watch a file of one node. */
    EXPECT(n > 0 && chmod("once", 0600) == 0);
    TRY(wait_for(once, IN_ATTRIB));
    int number = inotify_add_watch(fd, "/usr", IN_CREATE);
    EXPECT(number == once + 1);
    return inotify_rm_watch(fd, number) == 0 ? NULL : "inotify_rm_watch";
}

static const char *verify(int n) {
    EXPECT(n > 0 && inotify_rm_watch(fd, once) == -1 && errno == EINVAL);
    return check();
}
