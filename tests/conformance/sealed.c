/* A mapping that is sealed: it can be written, but neither unmapped nor protected; and one that the
 * kernel may drop, which a fork empties. */
/* Before Linux 6.10 a node refuses: sealed memory (mseal, Linux 6.10) */
#include "conform.h"

#define PAGE 4096ul
#define DROPPABLE 0x08
static uint8_t *at, *droppable;
static int seals, drops;

static const char *setup(void) {
    int how = PROT_READ | PROT_WRITE;
    seals = since(6, 10, "mseal");
    drops = since(6, 11, "MAP_DROPPABLE");
    at = mmap(NULL, 4 * PAGE, how, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    droppable = mmap(NULL, 4 * PAGE, how, (drops ? DROPPABLE : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
    EXPECT(at != MAP_FAILED && droppable != MAP_FAILED);
    fill(at, 4 * PAGE, 1);
    if (seals) EXPECT(syscall(462, at, 4 * PAGE, 0) == 0);
    droppable[5] = 5;
    return NULL;
}

static int may_drop(void) {
    char line[512], wanted[32];
    int inside = 0, found = 0;
    FILE *maps = fopen("/proc/self/smaps", "r");
    snprintf(wanted, sizeof wanted, "%lx-", (unsigned long)droppable);
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        if (!strncmp(line, wanted, strlen(wanted))) inside = 1;
        if (inside && !strncmp(line, "VmFlags:", 8)) {
            found = strstr(line, " dp") != NULL;
            break;
        }
    }
    if (maps != NULL) fclose(maps);
    return found;
}

static const char *holds(unsigned seed) {
    EXPECT(filled(at, 4 * PAGE, seed));
    if (seals) {
        EXPECT(mprotect(at, PAGE, PROT_NONE) == -1 && errno == EPERM);
        EXPECT(munmap(at, PAGE) == -1 && errno == EPERM);
    }
    EXPECT(may_drop() == drops && (droppable[5] == 5 || (drops && droppable[5] == 0)));
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(at, 4 * PAGE, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
