/* A main thread in seccomp's strict mode: it only reads and writes from then on, and another thread does
 * all else. */
#include "conform.h"
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>

static int to[2], from[2];
static volatile uint8_t count = 7;

static const char *told(uint8_t order, uint8_t want) {
    uint8_t got = 0;
    EXPECT(write(to[1], &order, 1) == 1);
    EXPECT(comes(from[0]));
    EXPECT(read(from[0], &got, 1) == 1 && got == want);
    return NULL;
}

static void *answers(void *arg) {
    if (told('=', 7) != NULL || write(1, "ready\n", 6) != 6) _exit(1);
    for (;;) {
        int fd = accept4(CONTROL_FD, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        converse(fd);
        close(fd);
    }
    return arg;
}

static const char *setup(void) {
    pthread_t id;
    uint8_t order;
    EXPECT(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
    EXPECT(pthread_create(&id, NULL, answers, NULL) == 0);
    EXPECT(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0) == 0);
    for (;;) {
        if (syscall(SYS_read, to[0], &order, 1) != 1) continue;
        if (order == '+') count++;
        syscall(SYS_write, from[1], (void *)&count, 1);
    }
}

static const char *holds(uint8_t want) {
    char text[4096] = {0};
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    EXPECT(fd >= 0 && read(fd, text, sizeof text - 1) > 0 && close(fd) == 0);
    EXPECT(strstr(text, "\nSeccomp:\t1\n") != NULL);
    EXPECT(prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == SECCOMP_MODE_DISABLED);
    return told('=', want);
}

static const char *check(void) { return holds(7); }
static const char *change(int n) {
    for (int i = 1; i <= n; i++) TRY(told('+', (uint8_t)(7 + i)));
    return NULL;
}
static const char *verify(int n) { return holds((uint8_t)(7 + n)); }
