/* Refused: descriptors queued, which a unix socket holds for whoever reads from it. */
#include "conform.h"

static int ends[2];

static const char *setup(void) {
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    char byte = 'x', space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = space};
    m.msg_controllen = sizeof space;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET};
    c->cmsg_type = SCM_RIGHTS;
    memcpy(CMSG_DATA(c), &ends[0], sizeof(int));
    EXPECT(sendmsg(ends[0], &m, 0) == 1);
    return NULL;
}

/* The descriptor is still there to be peeked at. */
static const char *check(void) {
    char byte, space[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = space};
    int fd;
    m.msg_controllen = sizeof space;
    EXPECT(recvmsg(ends[1], &m, MSG_PEEK) == 1 && CMSG_FIRSTHDR(&m) != NULL);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    EXPECT(close(fd) == 0);
    return NULL;
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
