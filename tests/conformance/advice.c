/* What madvise(2) and mlock(2) have said about memory: areas that a fork empties are empty in a child;
 * those that it leaves out are there, and left out by the forks of a child. */
#include "conform.h"
#include <sys/wait.h>

#define PAGE 4096ul
#define AREA (8 * PAGE)
static uint8_t *wiped, *absent, *small, *undumped, *locked, *guarded, *huge;

static uint8_t *area(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    uint8_t *room = mmap(NULL, AREA + 2 * PAGE, PROT_NONE, flags, -1, 0);
    if (room == MAP_FAILED || mprotect(room + PAGE, AREA, PROT_READ | PROT_WRITE) != 0) return NULL;
    fill(room + PAGE, AREA, 1);
    return room + PAGE;
}

static const char *setup(void) {
    wiped = area(), absent = area(), small = area(), undumped = area(), locked = area();
    guarded = area();
    huge = mmap(NULL, 8ul << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(wiped && absent && small && undumped && locked && guarded && huge != MAP_FAILED);
    EXPECT(madvise(huge, 8ul << 20, MADV_HUGEPAGE) == 0);
    fill(huge, 8ul << 20, 5);
    EXPECT(madvise(wiped, AREA, MADV_WIPEONFORK) == 0);
    EXPECT(madvise(absent, AREA, MADV_DONTFORK) == 0);
    EXPECT(madvise(small, AREA, MADV_NOHUGEPAGE) == 0);
    EXPECT(madvise(undumped, AREA, MADV_DONTDUMP) == 0);
    EXPECT(mlock(locked, AREA) == 0);
    return NULL;
}

/* The two-letter flags of the mapping at an address. */
static int has_flag(const uint8_t *at, const char *flag) {
    char line[512];
    int inside = 0, found = 0;
    FILE *maps = fopen("/proc/self/smaps", "r");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = start <= (unsigned long)at && (unsigned long)at < end;
        if (inside && !strncmp(line, "VmFlags:", 8)) found = strstr(line, flag) != NULL;
    }
    if (maps != NULL) fclose(maps);
    return found;
}

static const char *holds(unsigned seed) {
    int parent = has_flag(locked, " lo");
    EXPECT(filled(small, AREA, seed) && filled(undumped, AREA, 1) && filled(locked, AREA, 1));
    EXPECT(filled(guarded, AREA, 1) && filled(huge, 8ul << 20, 5));
    EXPECT(has_flag(small, " nh") && has_flag(undumped, " dd") && has_flag(wiped, " wf"));
    EXPECT(has_flag(huge, " hg"));
    EXPECT(filled(absent, AREA, seed) && has_flag(absent, " dc"));
    EXPECT(!has_flag(absent - PAGE, " dc") && !has_flag(absent + AREA, " dc"));
    pid_t own = fork();
    if (own == 0) {
        static unsigned char pages[8];
        _exit(mincore(absent, AREA, pages) == 0);
    }
    int status = 0;
    EXPECT(waitpid(own, &status, 0) == own && status == 0);
    if (parent) {
        EXPECT(filled(wiped, AREA, 1));
    } else {
        for (size_t i = 0; i < AREA; i++) EXPECT(wiped[i] == 0);
    }
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(small, AREA, 10 + (unsigned)n);
    fill(absent, AREA, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
