/* O_PATH descriptors: of a file, of a directory, of a symbolic link itself. */
#include "conform.h"

static int file, dir, link_fd;

__attribute__((used)) const char *files(void) {
    EXPECT(mkdir("dir", 0755) == 0 || errno == EEXIST);
    TRY(write_file("dir/file", "12345", 5));
    EXPECT(symlink("dir/file", "link") == 0 || errno == EEXIST);
    return NULL;
}

static const char *setup(void) {
    file = open("dir/file", O_PATH);
    dir = open("dir", O_PATH | O_DIRECTORY | O_CLOEXEC);
    link_fd = open("link", O_PATH | O_NOFOLLOW);
    EXPECT(file >= 0 && dir >= 0 && link_fd >= 0);
    return NULL;
}

static const char *check(void) {
    struct stat st;
    char target[32] = "";
    EXPECT(fstat(file, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 5);
    EXPECT(fstatat(dir, "file", &st, 0) == 0 && st.st_size == 5 && is_cloexec(dir));
    EXPECT(fstat(link_fd, &st) == 0 && S_ISLNK(st.st_mode));
    EXPECT(readlinkat(link_fd, "", target, sizeof target) == 8 && !strcmp(target, "dir/file"));
    char byte;
    EXPECT(read(file, &byte, 1) == -1 && errno == EBADF);
    return NULL;
}

static const char *change(int n) { return fchdir(n == 1 ? dir : dir) == 0 ? NULL : "fchdir"; }

static const char *verify(int n) {
    struct stat st;
    EXPECT(n > 0 && stat("file", &st) == 0);
    return check();
}
