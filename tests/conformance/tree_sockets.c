/* Connections between processes: socketpairs of all three types with what is queued in them, open
 * files too, and a TCP connection of which each member has one end. */
/* Prepared with --tree */
#include "tree.h"

enum { READ, SEND };
static struct member left, right;
static int stream[2], dgram[2], packet[2], tcp[2], passed;

static const char *pass(int socket, int fd) {
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {0};
    struct iovec iov = {"f", 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    EXPECT(sendmsg(socket, &message, 0) == 1);
    return NULL;
}

static const char *receive(int socket, int *fd) {
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {0};
    char byte;
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    EXPECT(recvmsg(socket, &message, MSG_DONTWAIT) == 1 && byte == 'f');
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    EXPECT(head != NULL && head->cmsg_type == SCM_RIGHTS);
    memcpy(fd, CMSG_DATA(head), sizeof *fd);
    return NULL;
}

static const char *gets(int fd, const char *wanted) {
    char text[64] = "";
    ssize_t got = recv(fd, text, sizeof text - 1, 0);
    EXPECT(got == (ssize_t)strlen(wanted) && !strcmp(text, wanted));
    return NULL;
}

static void is_left(void) {
    close(stream[1]), close(dgram[1]), close(packet[1]), close(tcp[1]);
}
static const char *at_left(int what, int n) {
    char text[16];
    if (what == READ) return gets(tcp[0], "back");
    snprintf(text, sizeof text, "later %d", n);
    EXPECT(send(stream[0], text, 7, 0) == 7 && send(dgram[0], text, 7, 0) == 7);
    EXPECT(send(packet[0], text, 7, 0) == 7 && send(tcp[0], text, 7, 0) == 7);
    return NULL;
}

static void is_right(void) {
    close(stream[0]), close(dgram[0]), close(packet[0]), close(tcp[0]);
}
static const char *at_right(int what, int n) {
    char text[16], byte;
    int fd = -1;
    snprintf(text, sizeof text, "later %d", n);
    if (what == READ) {
        TRY(gets(stream[1], "stream"));
        TRY(gets(dgram[1], "one"));
        TRY(gets(dgram[1], "two"));
        TRY(gets(packet[1], "packet"));
        TRY(receive(packet[1], &fd));
        EXPECT(read(fd, &byte, 1) == 1 && byte == 'p' && close(fd) == 0);
        TRY(gets(tcp[1], "over tcp"));
        EXPECT(send(tcp[1], "back", 4, 0) == 4);
        return NULL;
    }
    TRY(gets(stream[1], text));
    TRY(gets(dgram[1], text));
    TRY(gets(packet[1], text));
    TRY(gets(tcp[1], text));
    return NULL;
}

static const char *setup(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof at;
    int pipe_ends[2], listener = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0);
    EXPECT(socketpair(AF_UNIX, SOCK_DGRAM, 0, dgram) == 0);
    EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packet) == 0);
    EXPECT(bind(listener, (struct sockaddr *)&at, len) == 0 && listen(listener, 1) == 0);
    EXPECT(getsockname(listener, (struct sockaddr *)&at, &len) == 0);
    tcp[0] = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(connect(tcp[0], (struct sockaddr *)&at, len) == 0);
    EXPECT((tcp[1] = accept(listener, NULL, NULL)) >= 0 && close(listener) == 0);
    EXPECT(send(stream[0], "stream", 6, 0) == 6 && send(packet[0], "packet", 6, 0) == 6);
    EXPECT(send(dgram[0], "one", 3, 0) == 3 && send(dgram[0], "two", 3, 0) == 3);
    EXPECT(send(tcp[0], "over tcp", 8, 0) == 8);
    EXPECT(pipe(pipe_ends) == 0 && write(pipe_ends[1], "p", 1) == 1);
    passed = pipe_ends[0];
    TRY(pass(packet[0], passed));
    close(pipe_ends[1]);
    TRY(begin(&left, is_left, at_left));
    TRY(begin(&right, is_right, at_right));
    is_left(), is_right();
    return NULL;
}

static const char *check(void) {
    EXPECT(kill(left.pid, 0) == 0 && kill(right.pid, 0) == 0);
    return NULL;
}

static const char *change(int n) {
    TRY(tell(&right, READ, n));
    return tell(&left, READ, n);
}

static const char *verify(int n) {
    TRY(tell(&left, SEND, n));
    return tell(&right, SEND, n);
}
