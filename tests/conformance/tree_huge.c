/* A file of huge pages (hugetlbfs) that two processes map, one of which has it open as well. To a child it is
 * memory of its own that both share, in ordinary pages. */
/* Prepared with --tree */
#include "huge.h"
#include "tree.h"
#include <sched.h>
#include <sys/mount.h>

enum { FILL, HOLDS };
#define HUGE (2ul << 20)
static uint8_t *at;
static int fd = -1;
static struct member other;

static const char *works(int what, int n) {
    if (what == FILL) fill(at, HUGE / 2, (unsigned)n);
    if (what == HOLDS) EXPECT(filled(at, HUGE / 2, (unsigned)n));
    return NULL;
}
static void maps_only(void) { close(fd); }

static const char *map(void) {
    char path[64];
    snprintf(path, sizeof path, "huge-%d", getpid());
    EXPECT(mkdir("huge", 0755) == 0 || errno == EEXIST);
    /* Seen by nobody else, and gone with the last who has it. */
    EXPECT(unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    EXPECT(mount("none", "huge", "hugetlbfs", 0, NULL) == 0 && chdir("huge") == 0);
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    EXPECT(chdir("..") == 0 && fd >= 0 && ftruncate(fd, HUGE) == 0);
    at = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT(at != MAP_FAILED);
    fill(at, HUGE / 2, 1);
    return NULL;
}

static const char *setup(void) {
    TRY(with_huge_pages(3, map));
    return begin(&other, maps_only, works);
}

static const char *holds(int n) {
    static uint8_t bytes[HUGE / 2];
    EXPECT(filled(at, HUGE / 2, (unsigned)n) && is_cloexec(fd));
    EXPECT(pread(fd, bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes);
    EXPECT(filled(bytes, sizeof bytes, (unsigned)n));
    return tell(&other, HOLDS, n);
}

static const char *check(void) { return holds(1); }
static const char *change(int n) { return tell(&other, FILL, 10 + n); }
static const char *verify(int n) { return holds(10 + n); }
