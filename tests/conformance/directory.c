/* An open directory, read half way. */
#include "conform.h"
#include <dirent.h>

static int fd;
static char rest[64], all[64];

__attribute__((used)) const char *files(void) {
    EXPECT(mkdir("dir", 0755) == 0 || errno == EEXIST);
    char path[32];
    for (int i = 0; i < 20; i++) {
        snprintf(path, sizeof path, "dir/%c", 'a' + i);
        TRY(write_file(path, "x", 1));
    }
    return NULL;
}

/* The names from here on, one letter each; the position is put back. */
static const char *names(char *out) {
    char buffer[8192];
    off_t at = lseek(fd, 0, SEEK_CUR);
    long got = 0;
    while ((got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0)
        for (long i = 0; i < got; i += ((struct dirent64 *)(buffer + i))->d_reclen) {
            const char *name = ((struct dirent64 *)(buffer + i))->d_name;
            if (name[0] != '.') *out++ = name[0];
        }
    *out = 0;
    EXPECT(got == 0 && lseek(fd, at, SEEK_SET) == at);
    return NULL;
}

static const char *setup(void) {
    char buffer[240];
    fd = open("dir", O_RDONLY | O_DIRECTORY);
    EXPECT(fd >= 0);
    TRY(names(all));
    EXPECT(strlen(all) == 20);
    EXPECT(syscall(SYS_getdents64, fd, buffer, sizeof buffer) > 0);
    TRY(names(rest));
    EXPECT(strlen(rest) > 0 && strlen(rest) < 20);
    return NULL;
}

static const char *check(void) {
    char got[64];
    TRY(names(got));
    EXPECT(!strcmp(got, rest));
    EXPECT(faccessat(fd, "c", R_OK, 0) == 0);
    EXPECT(flags_of(fd) & O_DIRECTORY);
    return NULL;
}

static const char *change(int n) {
    if (n == 1) EXPECT(lseek(fd, 0, SEEK_SET) == 0);
    else EXPECT(lseek(fd, INT32_MAX, SEEK_SET) == INT32_MAX);
    return NULL;
}

static const char *verify(int n) {
    char got[64];
    TRY(names(got));
    EXPECT(!strcmp(got, n == 1 ? all : ""));
    return NULL;
}
