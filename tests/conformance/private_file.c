/* A private mapping of a file, of which some pages were written: those are the process's own, the
 * others the file's; and a private mapping of a file that is deleted. */
#include "conform.h"

#define PAGE 4096ul
#define PAGES 64ul
static uint8_t *at, *gone;

const char *files(void) {
    static uint8_t content[PAGES * PAGE];
    fill(content, sizeof content, 9);
    return write_file("mapped", content, sizeof content);
}

static const char *setup(void) {
    static uint8_t content[8 * PAGE];
    int fd = open("mapped", O_RDONLY);
    fill(content, sizeof content, 3);
    TRY(write_file("gone", content, sizeof content));
    int other = open("gone", O_RDONLY);
    EXPECT(fd >= 0 && other >= 0 && unlink("gone") == 0);
    at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    gone = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, other, 0);
    EXPECT(at != MAP_FAILED && gone != MAP_FAILED && close(fd) == 0 && close(other) == 0);
    for (size_t i = 0; i < PAGES; i += 3) fill(at + i * PAGE, PAGE, 1);
    gone[5 * PAGE] = 7;
    return mprotect(at + 3 * PAGE, PAGE, PROT_READ) == 0 ? NULL : "mprotect";
}

static const char *holds(unsigned seed) {
    static uint8_t content[PAGES * PAGE];
    fill(content, sizeof content, 9);
    for (size_t i = 0; i < PAGES; i++) {
        if (i % 3 != 0) EXPECT(memcmp(at + i * PAGE, content + i * PAGE, PAGE) == 0);
        else EXPECT(filled(at + i * PAGE, PAGE, i == 3 ? 1 : seed));
    }
    fill(content, 8 * PAGE, 3);
    EXPECT(memcmp(gone, content, 5 * PAGE) == 0 && gone[5 * PAGE] == 7);
    EXPECT(memcmp(gone + 5 * PAGE + 1, content + 5 * PAGE + 1, 3 * PAGE - 1) == 0);
    return NULL;
}

static const char *check(void) { return holds(1); }

static const char *change(int n) {
    for (size_t i = 0; i < PAGES; i += 3)
        if (i != 3) fill(at + i * PAGE, PAGE, 10 + (unsigned)n);
    return NULL;
}

static const char *verify(int n) { return holds(10 + (unsigned)n); }
