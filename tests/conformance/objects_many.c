/* More objects of shared memory that are mapped and open as well than a child has numbers set aside
 * for: each a mapping, a description and a content of its own. */
#include "conform.h"

enum { OBJECTS = 300 };
static int fds[OBJECTS];
static uint8_t *maps[OBJECTS];

static const char *setup(void) {
    for (int i = 0; i < OBJECTS; i++) {
        char name[32];
        snprintf(name, sizeof name, "object %d", i);
        EXPECT((fds[i] = memfd_create(name, MFD_CLOEXEC)) >= 0 && ftruncate(fds[i], 8192) == 0);
        maps[i] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
        EXPECT(maps[i] != MAP_FAILED);
        maps[i][i] = (uint8_t)(i + 1);
        EXPECT(pwrite(fds[i], &i, sizeof i, 4096) == sizeof i);
    }
    return NULL;
}

static const char *holds(int seed) {
    for (int i = 0; i < OBJECTS; i++) {
        uint8_t byte = 0;
        int number = -1;
        EXPECT(maps[i][i] == (uint8_t)(i + seed));
        EXPECT(pread(fds[i], &byte, 1, i) == 1 && byte == (uint8_t)(i + seed));
        EXPECT(pread(fds[i], &number, sizeof number, 4096) == sizeof number && number == i);
    }
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    for (int i = 0; i < OBJECTS; i++) maps[i][i] = (uint8_t)(i + 10 + n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
