/* Refused: fanotify, which watches for the whole machine, not for the process. */
#include "conform.h"
#include <sys/fanotify.h>

static int group;

static const char *setup(void) {
    EXPECT(write_file("watched", "x", 1) == NULL);
    group = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY);
    EXPECT(group >= 0);
    EXPECT(fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, "watched") == 0);
    return NULL;
}

static const char *check(void) {
    char events[4096];
    int fd = open("watched", O_RDONLY);
    EXPECT(fd >= 0 && close(fd) == 0);
    ssize_t got = read(group, events, sizeof events);
    EXPECT(got >= (ssize_t)sizeof(struct fanotify_event_metadata));
    for (struct fanotify_event_metadata *e = (void *)events; FAN_EVENT_OK(e, got);
         e = FAN_EVENT_NEXT(e, got))
        close(e->fd);
    return NULL;
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
