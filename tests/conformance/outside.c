/* Connections whose other end is another process: the parent keeps them; to a child they are
 * closed (unix, after what was queued) or reset (TCP). */
#include "conform.h"

static int tcp, unix_fd, changed;
static pid_t parent_pid, other;

/* Echoes single bytes of both until it is killed, or its parent dies. */
static void echo(int tcp_end, int unix_end) {
    struct pollfd fds[2] = {{.fd = tcp_end, .events = POLLIN}, {.fd = unix_end, .events = POLLIN}};
    char byte;
    while (poll(fds, 2, -1) > 0)
        for (int i = 0; i < 2; i++)
            if (fds[i].revents != 0 &&
                (read(fds[i].fd, &byte, 1) != 1 || write(fds[i].fd, &byte, 1) != 1))
                _exit(0);
    _exit(1);
}

static const char *setup(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int pair[2], listener = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&at, &len) == 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(connect(tcp, (struct sockaddr *)&at, sizeof at) == 0);
    int server = accept(listener, NULL, NULL);
    EXPECT(server >= 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    unix_fd = pair[0];
    other = fork();
    if (other == 0) {
        close(tcp);
        close(pair[0]);
        echo(server, pair[1]);
    }
    EXPECT(other > 0 && close(server) == 0 && close(pair[1]) == 0 && close(listener) == 0);
    parent_pid = getppid();
    return NULL;
}

static const char *check(void) {
    char byte = 'x';
    EXPECT(is_cloexec(tcp));
    if (getppid() == parent_pid) {
        EXPECT(write(tcp, "t", 1) == 1 && read(tcp, &byte, 1) == 1 && byte == 't');
        EXPECT(write(unix_fd, "u", 1) == 1 && read(unix_fd, &byte, 1) == 1 && byte == 'u');
        return NULL;
    }
    if (!changed) EXPECT(readable(tcp));
    EXPECT(read(unix_fd, &byte, 1) == 0);
    EXPECT(write(unix_fd, "u", 1) == -1 && errno == EPIPE);
    return NULL;
}

static const char *change(int n) {
    char byte;
    EXPECT(n > 0 && read(tcp, &byte, 1) == -1 && errno == ECONNRESET);
    EXPECT(write(tcp, "t", 1) == -1 && errno == EPIPE);
    changed = 1;
    /* A socket that was reset is neither listening nor connected. */
    return close(tcp) == 0 && (tcp = fcntl(unix_fd, F_DUPFD_CLOEXEC, 0)) >= 0 ? NULL : "dup";
}

static const char *verify(int n) {
    EXPECT(n > 0 && changed);
    return check();
}
