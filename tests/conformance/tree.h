/* Programs of several processes (`Prepared with --tree`): a member is forked in setup() and does
 * what it is told, by number, over a socketpair with its parent. */
#ifndef CONFORM_TREE_H
#define CONFORM_TREE_H
#include "conform.h"
#include <sys/prctl.h>
#include <sys/wait.h>

struct member {
    pid_t pid;
    int fd;
};

struct order {
    int what, n;
};

struct answer {
    int wrong;
    char text[400];
};

typedef const char *(*work)(int what, int n);

/* For whoever talks to it: no number that a program may care for. */
#define MEMBER_FD 210

static void obey_orders(int fd, work does) {
    struct order order;
    while (read(fd, &order, sizeof order) == sizeof order) {
        struct answer answer = {0};
        const char *what = does(order.what, order.n);
        if (what != NULL) {
            answer.wrong = 1;
            snprintf(answer.text, sizeof answer.text, "member %d: %s", getpid(), what);
        }
        if (write(fd, &answer, sizeof answer) != sizeof answer) break;
    }
    _exit(0);
}

/* Begins a member, which first does `begins`, if that is not NULL. */
__attribute__((unused)) static const char *begin(struct member *member, void (*begins)(void),
                                                 work does) {
    int ends[2];
    EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    EXPECT((member->fd = fcntl(ends[0], F_DUPFD_CLOEXEC, MEMBER_FD)) >= 0);
    close(ends[0]);
    member->pid = fork();
    EXPECT(member->pid >= 0);
    if (member->pid == 0) {
        int own = fcntl(ends[1], F_DUPFD_CLOEXEC, MEMBER_FD);
        close(ends[1]);
        close(member->fd);
        close(CONTROL_FD);
        if (begins != NULL) begins();
        obey_orders(own, does);
    }
    return close(ends[1]) == 0 ? NULL : "close";
}

__attribute__((unused)) static const char *tell(struct member *member, int what, int n) {
    static __thread struct answer answer;
    struct order order = {what, n};
    EXPECT(write(member->fd, &order, sizeof order) == sizeof order);
    EXPECT(read(member->fd, &answer, sizeof answer) == sizeof answer);
    return answer.wrong ? answer.text : NULL;
}

/* Until a thread or process waits in the kernel; a second, at most. */
__attribute__((unused)) static int sleeps(pid_t pid) {
    for (int i = 0; i < 100; i++) {
        char path[64], line[256] = "";
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        FILE *file = fopen(path, "r");
        if (file == NULL || fgets(line, sizeof line, file) == NULL) return 0;
        fclose(file);
        if (strstr(line, ") S ") != NULL) return 1;
        usleep(10000);
    }
    return 0;
}
#endif
