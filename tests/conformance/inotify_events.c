/* inotify with events that nobody has read: they stay with the parent, and in a child the watches tell
 * of what happens from then on. Watches of deleted files: of one that is open, and of one that only
 * another process holds. */
#include "conform.h"
#include <sys/inotify.h>
#include <sys/prctl.h>

static int fd, here, open_one, lost_one, held, turn;

static const char *setup(void) {
    int to_child[2];
    char byte;
    fd = inotify_init1(IN_NONBLOCK);
    here = inotify_add_watch(fd, ".", IN_CREATE);
    TRY(write_file("held", "x", 1));
    TRY(write_file("lost", "x", 1));
    open_one = inotify_add_watch(fd, "held", IN_ATTRIB);
    lost_one = inotify_add_watch(fd, "lost", IN_MODIFY | IN_DELETE_SELF);
    EXPECT(fd >= 0 && here == 1 && open_one == 2 && lost_one == 3);
    held = open("held", O_RDWR);
    EXPECT(held >= 0 && pipe2(to_child, O_CLOEXEC) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int lost = open("lost", O_RDWR);
        if (lost < 0 || write(to_child[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    EXPECT(pid > 0 && read(to_child[0], &byte, 1) == 1);
    EXPECT(close(to_child[0]) == 0 && close(to_child[1]) == 0);
    EXPECT(unlink("held") == 0 && unlink("lost") == 0);
    unlink("waits");
    return write_file("waits", "x", 1);
}

/* The next event, or NULL. */
static const struct inotify_event *next(void) {
    static char buffer[8192];
    static ssize_t at, got;
    if (at >= got) {
        at = 0;
        got = read(fd, buffer, sizeof buffer);
    }
    if (got <= 0) return NULL;
    const struct inotify_event *event = (const struct inotify_event *)(buffer + at);
    at += (ssize_t)(sizeof *event + event->len);
    return event;
}

/* What is done to the files is told. */
static const char *tells(void) {
    char name[32];
    const struct inotify_event *event;
    snprintf(name, sizeof name, "new-%d-%d", (int)getpid(), turn++);
    unlink(name);
    while (next() != NULL) {
    }
    TRY(write_file(name, "x", 1));
    /* A sibling makes files here as well. */
    while ((event = next()) != NULL && strcmp(event->name, name) != 0) EXPECT(event->wd == here);
    EXPECT(event != NULL && event->wd == here && event->mask == IN_CREATE);
    while (next() != NULL) {
    }
    EXPECT(unlink(name) == 0 && fchmod(held, turn % 2 ? 0600 : 0640) == 0);
    while ((event = next()) != NULL && event->wd == here) {
    }
    EXPECT(event != NULL && event->wd == open_one && event->mask == IN_ATTRIB);
    return NULL;
}

static int begun;

static const char *check(void) {
    const struct inotify_event *event;
    if (is_parent()) return readable(fd) ? NULL : "no event";
    if (begun++ == 0) {
        /* Only what became of the lost one. */
        EXPECT((event = next()) != NULL && event->wd == lost_one);
        EXPECT(event->mask == IN_DELETE_SELF);
        EXPECT((event = next()) != NULL && event->wd == lost_one && event->mask == IN_IGNORED);
    }
    return tells();
}

static const char *change(int n) {
    int next_one = inotify_add_watch(fd, "/usr", IN_CREATE);
    EXPECT(n > 0 && next_one == 4 && inotify_rm_watch(fd, next_one) == 0);
    return NULL;
}

static const char *verify(int n) {
    EXPECT(n > 0 && inotify_rm_watch(fd, lost_one) == -1 && errno == EINVAL);
    return tells();
}
