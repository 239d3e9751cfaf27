/* A thread in seccomp's strict mode, beside one with a filter and one with neither: it still reads and
 * writes, and whatever else it calls is its end, and its alone. */
#include "conform.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <sys/prctl.h>

static int to[2], from[2], error_there;
static sem_t ask, answer;
static volatile pid_t strict_one;
static volatile uint8_t count = 7;

static void *strict(void *arg) {
    uint8_t order;
    strict_one = (pid_t)syscall(SYS_gettid);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0) != 0) return arg;
    for (;;) {
        if (syscall(SYS_read, to[0], &order, 1) != 1) continue;
        if (order == 'e') syscall(SYS_getppid);
        if (order == '+') count++;
        syscall(SYS_write, from[1], (void *)&count, 1);
    }
    return arg;
}

static void *filtered(void *arg) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_acct, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0) return arg;
    for (;;) {
        sem_post(&answer);
        while (sem_wait(&ask) != 0) {
        }
        error_there = syscall(SYS_acct, "/nowhere") == -1 ? errno : 0;
    }
    return arg;
}

static const char *told(uint8_t order, uint8_t want) {
    uint8_t got = 0;
    EXPECT(write(to[1], &order, 1) == 1);
    EXPECT(comes(from[0]));
    EXPECT(read(from[0], &got, 1) == 1 && got == want);
    return NULL;
}

/* What /proc says of a thread, or -1 where there is none. */
static int mode_of(pid_t tid) {
    char path[64], text[4096] = {0};
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    const char *line = got > 0 ? strstr(text, "\nSeccomp:") : NULL;
    return line == NULL ? -1 : atoi(line + 9);
}

static const char *setup(void) {
    pthread_t id;
    EXPECT(sem_init(&ask, 0, 0) == 0 && sem_init(&answer, 0, 0) == 0);
    EXPECT(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
    EXPECT(pthread_create(&id, NULL, strict, NULL) == 0);
    EXPECT(pthread_create(&id, NULL, filtered, NULL) == 0);
    EXPECT(sem_wait(&answer) == 0);
    return told('=', 7);
}

static const char *holds(int n) {
    EXPECT(sem_post(&ask) == 0 && sem_wait(&answer) == 0 && error_there == EXDEV);
    EXPECT(mode_of((pid_t)syscall(SYS_gettid)) == 0);
    EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0);
    EXPECT(mode_of(strict_one) == (n == 1 ? -1 : SECCOMP_MODE_STRICT));
    return n == 1 ? NULL : told('=', n == 2 ? 8 : 7);
}

static const char *check(void) { return holds(0); }
static const char *change(int n) {
    if (n != 1) return told('+', 8);
    uint8_t end = 'e';
    EXPECT(write(to[1], &end, 1) == 1);
    for (int i = 0; i < 5000 && mode_of(strict_one) != -1; i++) usleep(1000);
    return NULL;
}
static const char *verify(int n) { return holds(n); }
