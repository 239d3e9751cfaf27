/* Descriptors that wait in unix sockets: of an end of the socket itself, of a file that was closed
 * after it was sent, of a pipe; between messages without any. */
#include "conform.h"

static int stream[2], packets[2], pipe_ends[2];

const char *files(void) { return write_file("passed", "0123456789", 10); }

static const char *pass(int to, char byte, int fd) {
    char space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = space};
    m.msg_controllen = sizeof space;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET};
    c->cmsg_type = SCM_RIGHTS;
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
    EXPECT(sendmsg(to, &m, 0) == 1);
    return NULL;
}

static const char *take(int from, char wanted, int *fd) {
    char byte, space[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = space};
    m.msg_controllen = sizeof space;
    EXPECT(recvmsg(from, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) == 1 && byte == wanted);
    *fd = -1;
    if (CMSG_FIRSTHDR(&m) != NULL) memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof *fd);
    return NULL;
}

static const char *fill_all(off_t at) {
    int file = open("passed", O_RDONLY);
    EXPECT(file >= 0 && lseek(file, at, SEEK_SET) == at);
    EXPECT(write(packets[0], "a", 1) == 1);
    TRY(pass(packets[0], 'b', file));
    EXPECT(write(packets[0], "c", 1) == 1 && close(file) == 0);
    TRY(pass(stream[0], 's', stream[1]));
    return pass(stream[0], 'p', pipe_ends[1]);
}

static const char *setup(void) {
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0 && pipe(pipe_ends) == 0);
    EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) == 0);
    return fill_all(3);
}

/* Takes all out, looks at it, and puts the same in again. */
static const char *empty(off_t wanted) {
    int fd;
    char byte;
    TRY(take(packets[1], 'a', &fd));
    EXPECT(fd == -1);
    TRY(take(packets[1], 'b', &fd));
    EXPECT(fd >= 0 && read(fd, &byte, 1) == 1 && byte == '0' + wanted && close(fd) == 0);
    TRY(take(packets[1], 'c', &fd));
    EXPECT(fd == -1);
    TRY(take(stream[1], 's', &fd));
    EXPECT(fd >= 0);
    struct stat one, other;
    EXPECT(fstat(fd, &one) == 0 && fstat(stream[1], &other) == 0 && one.st_ino == other.st_ino);
    EXPECT(close(fd) == 0);
    TRY(take(stream[1], 'p', &fd));
    EXPECT(fd >= 0 && write(fd, "!", 1) == 1 && close(fd) == 0);
    EXPECT(read(pipe_ends[0], &byte, 1) == 1 && byte == '!');
    return NULL;
}

static const char *check(void) {
    TRY(empty(3));
    return fill_all(3);
}

static const char *change(int n) {
    TRY(empty(3));
    return fill_all(5 + n);
}

static const char *verify(int n) {
    TRY(empty(5 + n));
    return fill_all(5 + n);
}
