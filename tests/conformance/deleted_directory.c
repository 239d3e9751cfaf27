/* Directories that were deleted: the current one, which is open as well, and another one of which there
 * is only an O_PATH descriptor. So of a deleted file and a deleted FIFO: one by O_PATH, one with both ends. */
#include "conform.h"

static int here, path_only, file, ends[2];
static mode_t mode = 0751;

static const char *setup(void) {
    EXPECT(mkdir("gone", 0700) == 0 && mkdir("gone_too", 0711) == 0);
    EXPECT(chmod("gone", mode) == 0 && chown("gone", 1234, 4321) == 0);
    path_only = open("gone_too", O_PATH | O_DIRECTORY);
    EXPECT(path_only >= 0 && rmdir("gone_too") == 0);
    TRY(write_file("gone_file", "content", 7));
    file = open("gone_file", O_PATH);
    EXPECT(file >= 0 && unlink("gone_file") == 0);
    EXPECT(mkfifo("gone_fifo", 0600) == 0);
    ends[0] = open("gone_fifo", O_RDONLY | O_NONBLOCK);
    ends[1] = open("gone_fifo", O_WRONLY);
    EXPECT(ends[0] >= 0 && ends[1] >= 0 && unlink("gone_fifo") == 0);
    EXPECT(write(ends[1], "queued", 6) == 6);
    here = open("gone", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    EXPECT(here >= 0 && chdir("gone") == 0 && rmdir("../gone") == 0);
    return NULL;
}

/* A deleted directory, and which. */
static const char *is_deleted(int fd, struct stat *at) {
    char buffer[1024];
    EXPECT(fstat(fd, at) == 0 && S_ISDIR(at->st_mode) && at->st_nlink == 0);
    EXPECT(openat(fd, "new", O_WRONLY | O_CREAT, 0600) == -1 && errno == ENOENT);
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY);
    EXPECT(again >= 0 && syscall(SYS_getdents64, again, buffer, sizeof buffer) <= 0);
    EXPECT(close(again) == 0);
    return NULL;
}

static const char *check(void) {
    char text[4096];
    struct stat current, open_one, other;
    EXPECT(getcwd(text, sizeof text) == NULL && errno == ENOENT);
    EXPECT(stat(".", &current) == 0);
    TRY(is_deleted(here, &open_one));
    EXPECT(current.st_ino == open_one.st_ino && current.st_dev == open_one.st_dev);
    EXPECT((open_one.st_mode & 07777) == mode && is_cloexec(here));
    EXPECT(open_one.st_uid == 1234 && open_one.st_gid == 4321);
    TRY(is_deleted(path_only, &other));
    EXPECT((other.st_mode & 0777) == 0711 && (flags_of(path_only) & O_PATH));
    EXPECT(other.st_ino != open_one.st_ino || other.st_dev != open_one.st_dev);
    ssize_t len = readlink("/proc/self/cwd", text, sizeof text);
    EXPECT(len >= 15 && memcmp(text + len - 15, "/gone (deleted)", 15) == 0);
    EXPECT((flags_of(file) & O_PATH) && read(file, text, 1) == -1 && errno == EBADF);
    snprintf(text, sizeof text, "/proc/self/fd/%d", file);
    int readable_one = open(text, O_RDONLY);
    EXPECT(readable_one >= 0 && read(readable_one, text, sizeof text) == 7);
    EXPECT(memcmp(text, "content", 7) == 0 && close(readable_one) == 0);
    EXPECT(read(ends[0], text, sizeof text) == 6 && memcmp(text, "queued", 6) == 0);
    EXPECT(write(ends[1], "queued", 6) == 6);
    return NULL;
}

static const char *change(int n) {
    mode = (mode_t)(0700 + n);
    EXPECT(fchmod(here, mode) == 0);
    return NULL;
}

static const char *verify(int n) {
    EXPECT(mode == (mode_t)(0700 + n));
    return check();
}
