/* Shared anonymous memory: with holes, partly read-only, partly without access, seen by a process
 * that the program forks. */
#include "conform.h"
#include <sys/wait.h>

#define PAGE 4096ul
#define PAGES 64ul
static uint8_t *at;

static const char *setup(void) {
    at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(at != MAP_FAILED);
    fill(at, 8 * PAGE, 1);
    fill(at + 20 * PAGE, PAGE, 2);
    fill(at + 40 * PAGE, 2 * PAGE, 3);
    EXPECT(mprotect(at + 20 * PAGE, PAGE, PROT_READ) == 0);
    EXPECT(mprotect(at + 40 * PAGE, 2 * PAGE, PROT_NONE) == 0);
    return NULL;
}

/* What another process writes there is seen here. */
static const char *shared_with_a_child(void) {
    int status;
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        at[60 * PAGE] += 1;
        _exit(at[60 * PAGE] == 0);
    }
    uint8_t before = at[60 * PAGE];
    EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
    EXPECT(at[60 * PAGE] == before || at[60 * PAGE] == before + 1);
    EXPECT(at[60 * PAGE] != 0);
    at[60 * PAGE] = 0;
    return NULL;
}

static const char *holds(unsigned first) {
    EXPECT(filled(at, 8 * PAGE, first));
    EXPECT(filled(at + 20 * PAGE, PAGE, 2));
    EXPECT(mprotect(at + 40 * PAGE, 2 * PAGE, PROT_READ) == 0);
    EXPECT(filled(at + 40 * PAGE, 2 * PAGE, 3));
    EXPECT(mprotect(at + 40 * PAGE, 2 * PAGE, PROT_NONE) == 0);
    for (size_t i = 42 * PAGE; i < 60 * PAGE; i++) EXPECT(at[i] == 0);
    /* In shared memory this drops no content. */
    EXPECT(madvise(at, 8 * PAGE, MADV_DONTNEED) == 0);
    EXPECT(filled(at, 8 * PAGE, first));
    return shared_with_a_child();
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(at, 8 * PAGE, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
