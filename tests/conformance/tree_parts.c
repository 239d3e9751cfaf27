/* Shared memory of which each process maps another part, and files without a path that one has open
 * and others map, one of them sealed. */
/* Prepared with --tree */
#include "tree.h"

enum { FILL, HOLDS, PAPER, WRITES, SEALED };
#define SIZE (1ul << 20)
#define QUARTER (SIZE / 4)
#define LARGE (160ul << 20)
static uint8_t *wide, *paper, *large;
static const uint8_t *sealed;
static int book, tome, wax;
static struct member second, third, rest;

static const char *works(int what, int n) {
    if (what == FILL) fill(wide + (size_t)n / 100 * QUARTER, QUARTER, (unsigned)n % 100);
    if (what == HOLDS) EXPECT(filled(wide + (size_t)n / 100 * QUARTER, QUARTER, (unsigned)n % 100));
    if (what == PAPER) {
        EXPECT(filled(paper, 4096, (unsigned)n) && filled(large + LARGE - 8192, 8192, (unsigned)n));
        EXPECT(large[LARGE / 2] == 0);
    }
    if (what == WRITES) fill(paper, 4096, (unsigned)n), fill(large + LARGE - 8192, 8192, (unsigned)n);
    if (what == SEALED) {
        EXPECT(filled(sealed, 4096, 9));
        EXPECT(mprotect((void *)sealed, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    }
    return NULL;
}

static void maps(void) {
    paper = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, book, 0);
    large = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_SHARED, tome, 0);
    sealed = mmap(NULL, 4096, PROT_READ, MAP_SHARED, wax, 0);
    if (paper == MAP_FAILED || large == MAP_FAILED || sealed == MAP_FAILED) _exit(5);
    close(tome), close(wax);
}
/* The root has the first quarter, these the second, and the second and third; the last has all. */
static void has_second(void) { munmap(wide, QUARTER), munmap(wide + 2 * QUARTER, 2 * QUARTER); }
static void has_third(void) {
    munmap(wide, QUARTER), munmap(wide + 3 * QUARTER, QUARTER);
    maps();
}
static void has_all(void) { maps(); }

static const char *setup(void) {
    wide = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(wide != MAP_FAILED);
    for (unsigned n = 0; n < 4; n++) fill(wide + n * QUARTER, QUARTER, n + 1);
    EXPECT((book = memfd_create("book", MFD_CLOEXEC)) >= 0 && ftruncate(book, 8192) == 0);
    EXPECT((tome = memfd_create("tome", MFD_CLOEXEC)) >= 0 && ftruncate(tome, LARGE) == 0);
    wax = memfd_create("wax", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT(wax >= 0 && ftruncate(wax, 4096) == 0);
    static uint8_t bytes[8192];
    fill(bytes, 4096, 9);
    EXPECT(write(wax, bytes, 4096) == 4096);
    EXPECT(fcntl(wax, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    fill(bytes, 4096, 5);
    EXPECT(pwrite(book, bytes, 4096, 0) == 4096 && pwrite(book, "end", 3, 8000) == 3);
    fill(bytes, 8192, 5);
    EXPECT(pwrite(tome, bytes, 8192, LARGE - 8192) == 8192);
    TRY(begin(&second, has_second, works));
    TRY(begin(&third, has_third, works));
    TRY(begin(&rest, has_all, works));
    /* Before it is one without it. */
    TRY(tell(&rest, HOLDS, 304));
    EXPECT(munmap(wide + QUARTER, 3 * QUARTER) == 0);
    return NULL;
}

static const char *holds(unsigned second_part, unsigned last, unsigned text) {
    uint8_t bytes[4096];
    EXPECT(filled(wide, QUARTER, 1));
    TRY(tell(&second, HOLDS, 100 + (int)second_part));
    TRY(tell(&third, HOLDS, 100 + (int)second_part));
    TRY(tell(&third, HOLDS, 203));
    TRY(tell(&rest, HOLDS, 203));
    TRY(tell(&rest, HOLDS, 1));
    TRY(tell(&rest, HOLDS, 100 + (int)second_part));
    TRY(tell(&rest, HOLDS, 300 + (int)last));
    TRY(tell(&third, PAPER, (int)text));
    TRY(tell(&rest, PAPER, (int)text));
    TRY(tell(&third, SEALED, 0));
    TRY(tell(&rest, SEALED, 0));
    EXPECT(pread(book, bytes, 4096, 0) == 4096 && filled(bytes, 4096, text));
    EXPECT(pread(book, bytes, 3, 8000) == 3 && memcmp(bytes, "end", 3) == 0);
    EXPECT(lseek(tome, 0, SEEK_END) == (off_t)LARGE);
    EXPECT(fcntl(wax, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
    return write(wax, "x", 1) == -1 && errno == EPERM ? NULL : "written though sealed";
}

static const char *check(void) { return holds(2, 4, 5); }
static const char *change(int n) {
    TRY(tell(&second, FILL, 100 + 10 + n));
    TRY(tell(&rest, FILL, 300 + 20 + n));
    return tell(&third, WRITES, 30 + n);
}
static const char *verify(int n) { return holds(10 + (unsigned)n, 20 + (unsigned)n, 30 + (unsigned)n); }
