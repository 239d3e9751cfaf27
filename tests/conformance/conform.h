/* What the conformance programs share: each holds one kind of state and can tell whether it has
 * it. A program is one file that includes this header and defines
 *
 *   setup()    makes the state; called once, in the parent
 *   check()    the state is as setup made it; may be called any number of times
 *   change(n)  changes it, differently for each n
 *   verify(n)  the state is as change(n) left it; may be called any number of times
 *   files()    optional: what must exist on every node, made in the working directory
 *
 * each of which returns NULL or says what is wrong. The program then answers `check`, `change N`
 * and `verify N` on a TCP port, one line for each connection, from its main thread, so that it can
 * be asked in the parent, in its children and in theirs. Usage: PROGRAM PORT, PROGRAM files. */
#ifndef CONFORM_H
#define CONFORM_H
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static const char *setup(void);
static const char *check(void);
static const char *change(int n);
static const char *verify(int n);
__attribute__((weak)) const char *files(void);

/* Leaves the function with a word on what was expected and where. */
#define EXPECT(condition)                                                                        \
    do {                                                                                         \
        if (!(condition)) return wrong(__LINE__, #condition);                                    \
    } while (0)
/* Leaves the function if another of the kind found something wrong. */
#define TRY(call)                                                                                \
    do {                                                                                         \
        const char *wrong_there = (call);                                                        \
        if (wrong_there != NULL) return wrong_there;                                             \
    } while (0)

__attribute__((unused)) static const char *wrong(int line, const char *what) {
    static __thread char text[400];
    snprintf(text, sizeof text, "line %d: not so: %s (errno %d)", line, what, errno);
    return text;
}

/* Whether this kernel is of that version or later. Where it is not, the program says what of its kind it
 * leaves out. If a node on such a kernel cannot have a child with it either, the program has a line that the
 * suite between two kernels (tests/vm) holds the node to:
 *   Before Linux MAJOR.MINOR a node refuses: WORDS */
__attribute__((unused)) static int since(int major, int minor, const char *what) {
    struct utsname name;
    int is_major = 0, is_minor = 0;
    if (uname(&name) != 0 || sscanf(name.release, "%d.%d", &is_major, &is_minor) != 2) return 1;
    if (is_major > major || (is_major == major && is_minor >= minor)) return 1;
    dprintf(1, "without %s (Linux %d.%d)\n", what, major, minor);
    return 0;
}

/* Whether the kernel can read the byte for this thread. */
__attribute__((unused)) static int there(const uint8_t *byte) {
    int ends[2];
    if (pipe(ends) != 0) return -1;
    int got = write(ends[1], byte, 1) == 1;
    close(ends[0]);
    close(ends[1]);
    return got;
}

/* O_* flags without close-on-exec, or -1. */
__attribute__((unused)) static int flags_of(int fd) { return fcntl(fd, F_GETFL); }

__attribute__((unused)) static int is_cloexec(int fd) { return fcntl(fd, F_GETFD) == FD_CLOEXEC; }

/* Whether something can be read at once. */
__attribute__((unused)) static int readable(int fd) {
    struct pollfd at = {.fd = fd, .events = POLLIN};
    return poll(&at, 1, 0) == 1 && (at.revents & POLLIN) != 0;
}

/* Whether something can be read soon: the kernel may hand a packet on later than it was sent. */
__attribute__((unused)) static int comes(int fd) {
    struct pollfd at = {.fd = fd, .events = POLLIN};
    return poll(&at, 1, 5000) == 1 && (at.revents & POLLIN) != 0;
}

/* Whether this is the parent: a child has a pid namespace of its own. */
static char home_namespace[64];
__attribute__((unused)) static int is_parent(void) {
    char now[64] = {0};
    return readlink("/proc/self/ns/pid", now, sizeof now - 1) > 0 && !strcmp(now, home_namespace);
}

/* Bytes that cannot be there by accident, the same for the same seed. */
__attribute__((unused)) static void fill(uint8_t *at, size_t len, unsigned seed) {
    uint32_t x = seed * 2654435761u + 1;
    for (size_t i = 0; i < len; i++) {
        x = x * 1664525u + 1013904223u;
        at[i] = (uint8_t)(x >> 24);
    }
}

__attribute__((unused)) static int filled(const uint8_t *at, size_t len, unsigned seed) {
    uint32_t x = seed * 2654435761u + 1;
    for (size_t i = 0; i < len; i++) {
        x = x * 1664525u + 1013904223u;
        if (at[i] != (uint8_t)(x >> 24)) return 0;
    }
    return 1;
}

__attribute__((unused)) static const char *write_file(const char *path, const void *data,
                                                      size_t len) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    EXPECT(fd >= 0);
    EXPECT(write(fd, data, len) == (ssize_t)len);
    EXPECT(close(fd) == 0);
    return NULL;
}

static const char *obey(const char *line) {
    int n = 0;
    if (!strcmp(line, "check")) return check();
    if (sscanf(line, "change %d", &n) == 1) return change(n);
    if (sscanf(line, "verify %d", &n) == 1) return verify(n);
    return "no such command";
}

static void converse(int fd) {
    char line[64], answer[512];
    size_t len = 0;
    while (len < sizeof line - 1 && read(fd, line + len, 1) == 1 && line[len] != '\n') len++;
    line[len] = 0;
    const char *what = obey(line);
    int used = snprintf(answer, sizeof answer, "%s\n", what == NULL ? "right" : what);
    if (send(fd, answer, (size_t)used, MSG_NOSIGNAL) != used) return;
}

/* Out of the way of the numbers that a program may care for. */
#define CONTROL_FD 200

static int control(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0) return -1;
    if (bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(fd, 16) != 0) return -1;
    if (fcntl(fd, F_DUPFD_CLOEXEC, CONTROL_FD) != CONTROL_FD) return -1;
    return close(fd);
}

/* Says that it is ready, and answers for ever. */
static int serve(void) {
    if (write(1, "ready\n", 6) != 6) return 1;
    for (;;) {
        int fd = accept4(CONTROL_FD, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        converse(fd);
        close(fd);
    }
}

int main(int argc, char **argv) {
    const char *failed = NULL;
    if (argc != 2) return 2;
    /* What whoever ran the tests has left open is no part of them. */
    syscall(SYS_close_range, 3, ~0u, 0);
    signal(SIGPIPE, SIG_IGN);
    if (readlink("/proc/self/ns/pid", home_namespace, sizeof home_namespace - 1) <= 0) return 1;
    if (!strcmp(argv[1], "files")) {
        if (files != NULL) failed = files();
    } else if (control(atoi(argv[1])) != 0) {
        failed = "cannot listen";
    } else {
        failed = setup();
    }
    if (failed != NULL) {
        printf("%s: %s\n", argv[0], failed);
        return 1;
    }
    if (!strcmp(argv[1], "files")) return 0;
    return serve();
}
#endif
