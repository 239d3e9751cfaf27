/* Files without a name: O_TMPFILE, and one that is open twice after it was deleted. */
#include "conform.h"

static int nameless, first, second;

static const char *setup(void) {
    char name[] = "temporary-XXXXXX";
    nameless = open(".", O_TMPFILE | O_RDWR, 0600);
    if (nameless < 0 && errno == EOPNOTSUPP) nameless = open("/dev/shm", O_TMPFILE | O_RDWR, 0600);
    first = mkstemp(name);
    second = open(name, O_RDONLY | O_NOFOLLOW);
    EXPECT(nameless >= 0 && first >= 0 && second >= 0 && unlink(name) == 0);
    EXPECT(write(nameless, "nameless", 8) == 8 && write(first, "deleted", 7) == 7);
    return NULL;
}

static const char *holds(char last) {
    char text[16];
    EXPECT(pread(nameless, text, 16, 0) == 8 && memcmp(text, "nameles", 7) == 0 && text[7] == last);
    EXPECT(pread(second, text, 16, 0) == 7 && memcmp(text, "delete", 6) == 0);
    EXPECT(text[6] == (last == 's' ? 'd' : last));
    EXPECT(lseek(first, 0, SEEK_CUR) == 7 && lseek(second, 0, SEEK_CUR) == 0);
    return NULL;
}

static const char *check(void) { return holds('s'); }
static const char *change(int n) {
    char last = (char)('0' + n);
    EXPECT(pwrite(nameless, &last, 1, 7) == 1 && pwrite(first, &last, 1, 6) == 1);
    return NULL;
}
static const char *verify(int n) { return holds((char)('0' + n)); }
