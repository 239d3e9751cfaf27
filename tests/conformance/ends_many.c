/* Thousands of ends of pipes and socketpairs: who belongs to whom is found once, not once for each. */
#include "conform.h"
#include <sys/resource.h>

#define EACH 2000
#define FIRST 1000
static struct { int pipe[2], pair[2]; } ends[EACH];

static int above(int fd, int wanted) {
    int at = fcntl(fd, F_DUPFD_CLOEXEC, wanted);
    close(fd);
    return at == wanted ? at : -1;
}

static const char *setup(void) {
    struct rlimit limit = {4 * EACH + FIRST, 4 * EACH + FIRST};
    EXPECT(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int i = 0; i < EACH; i++) {
        int *at = ends[i].pipe, *two = ends[i].pair, number = FIRST + 4 * i;
        EXPECT(pipe(at) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, two) == 0);
        EXPECT((at[0] = above(at[0], number)) > 0 && (at[1] = above(at[1], number + 1)) > 0);
        EXPECT((two[0] = above(two[0], number + 2)) > 0);
        EXPECT((two[1] = above(two[1], number + 3)) > 0);
        if (i % 100 == 0) EXPECT(write(at[1], &i, sizeof i) == sizeof i);
        if (i % 100 == 1) EXPECT(write(two[0], &i, sizeof i) == sizeof i);
    }
    return NULL;
}

/* What was written to each is read at its other end, and put back. */
static const char *through(int from, int to, int added) {
    int got;
    EXPECT(write(to, &added, sizeof added) == sizeof added);
    do EXPECT(read(from, &got, sizeof got) == sizeof got);
    while (got != added);
    return NULL;
}

static const char *holds(int added) {
    int got;
    for (int i = 0; i < EACH; i++) {
        int *at = ends[i].pipe, *two = ends[i].pair;
        EXPECT(readable(at[0]) == (i % 100 == 0) && readable(two[1]) == (i % 100 == 1));
        EXPECT(!readable(two[0]));
        if (i % 100 == 0) {
            EXPECT(read(at[0], &got, sizeof got) == sizeof got && got == i + added);
            EXPECT(write(at[1], &got, sizeof got) == sizeof got);
        }
        if (i % 100 == 1) {
            EXPECT(read(two[1], &got, sizeof got) == sizeof got && got == i + added);
            EXPECT(write(two[0], &got, sizeof got) == sizeof got);
        }
        if (i % 100 > 1) {
            TRY(through(at[0], at[1], added + i));
            TRY(through(two[0], two[1], added + i));
        }
    }
    return NULL;
}

static const char *check(void) { return holds(0); }

static const char *change(int n) {
    for (int i = 0; i < EACH; i++) {
        int got, *from = i % 100 == 0 ? &ends[i].pipe[0] : &ends[i].pair[1];
        int *to = i % 100 == 0 ? &ends[i].pipe[1] : &ends[i].pair[0];
        if (i % 100 > 1) continue;
        EXPECT(read(*from, &got, sizeof got) == sizeof got);
        got += n;
        EXPECT(write(*to, &got, sizeof got) == sizeof got);
    }
    return NULL;
}

static const char *verify(int n) { return holds(n); }
