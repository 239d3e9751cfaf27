/* What the programs have in common of which threads are confined each in its own way (seccomp(2)). */
#ifndef CONFINED_H
#define CONFINED_H
#include "conform.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

/* Installs a filter by which a call gives an error. */
__attribute__((unused)) static const char *forbid(unsigned call, int error, unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = code};
    EXPECT(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0);
    return NULL;
}

/* What /proc says of a thread, or -1 where there is none. */
__attribute__((unused)) static int mode_of(pid_t tid) {
    char path[64], text[4096] = {0};
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    const char *line = got > 0 ? strstr(text, "\nSeccomp:") : NULL;
    return line == NULL ? -1 : atoi(line + 9);
}

/* A thread in strict mode reads orders and writes a count: `+` raises that, and after `e` it calls what it
 * may not. */
static int to[2], from[2];
static volatile uint8_t count = 7;

/* Returns if there is no such mode. */
__attribute__((unused)) static void obey_in_strict_mode(void) {
    uint8_t order;
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0) != 0) return;
    for (;;) {
        if (syscall(SYS_read, to[0], &order, 1) != 1) continue;
        if (order == 'e') syscall(SYS_getppid);
        if (order == '+') count++;
        syscall(SYS_write, from[1], (void *)&count, 1);
    }
}

__attribute__((unused)) static const char *tells(uint8_t order, uint8_t want) {
    uint8_t got = 0;
    EXPECT(write(to[1], &order, 1) == 1);
    EXPECT(comes(from[0]));
    EXPECT(read(from[0], &got, 1) == 1 && got == want);
    return NULL;
}
#endif
