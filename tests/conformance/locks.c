/* Locks on files stay with the parent: record locks as after fork(2), the others because the child's
 * node has a file of its own, which a child can lock. */
/* Not beside its parent: it holds the locks. */
#include "conform.h"
#include <sys/file.h>

static int whole, record, open_file, has;

const char *files(void) {
    TRY(write_file("whole", "x", 1));
    TRY(write_file("record", "x", 1));
    return write_file("open_file", "x", 1);
}

static const char *setup(void) {
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    whole = open("whole", O_RDWR), record = open("record", O_RDWR);
    open_file = open("open_file", O_RDWR);
    EXPECT(whole >= 0 && record >= 0 && open_file >= 0);
    EXPECT(flock(whole, LOCK_EX) == 0 && fcntl(record, F_SETLK, &all) == 0);
    EXPECT(fcntl(open_file, F_OFD_SETLK, &all) == 0);
    return NULL;
}

/* Locks that the kernel says this descriptor stands for. */
static int locks_of(int fd) {
    char line[256];
    int count = 0;
    snprintf(line, sizeof line, "/proc/self/fdinfo/%d", fd);
    FILE *info = fopen(line, "r");
    while (info != NULL && fgets(line, sizeof line, info) != NULL)
        count += !strncmp(line, "lock:", 5);
    if (info != NULL) fclose(info);
    return count;
}

static const char *check(void) {
    int wanted = is_parent();
    EXPECT(locks_of(whole) == wanted && locks_of(record) == wanted);
    EXPECT(locks_of(open_file) == wanted);
    return NULL;
}

/* The children of one node meet at its files, as any two processes. */
static const char *change(int n) {
    EXPECT(flock(whole, LOCK_EX | LOCK_NB) == (n == 1 ? 0 : -1));
    has = n;
    return NULL;
}

static const char *verify(int n) {
    EXPECT(n == has && locks_of(record) == 0);
    return NULL;
}
