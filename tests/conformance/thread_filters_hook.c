/* A thread with a filter of its own, and a hook of the program: when that runs, the thread is confined already. */
#include "conform.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>

static sem_t confined;
static volatile pid_t other;
static volatile int hooked, filtered;

static int mode_of(pid_t tid) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t len = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    close(fd);
    if (len <= 0) return -1;
    text[len] = 0;
    const char *line = strstr(text, "\nSeccomp:\t");
    return line == NULL ? -1 : line[10] - '0';
}

__attribute__((visibility("default"))) int mitosis_after_fork(uint64_t number) {
    hooked += number != 0;
    filtered += mode_of(other) == SECCOMP_MODE_FILTER;
    return 0;
}

static void *thread(void *arg) {
    (void)arg;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_swapoff, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = code};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0) other = gettid();
    sem_post(&confined);
    for (;;) pause();
    return NULL;
}

static const char *setup(void) {
    pthread_t id;
    EXPECT(sem_init(&confined, 0, 0) == 0 && pthread_create(&id, NULL, thread, NULL) == 0);
    while (sem_wait(&confined) != 0) {
    }
    EXPECT(other != 0 && mode_of(other) == SECCOMP_MODE_FILTER && mode_of(getpid()) == 0);
    return NULL;
}

static const char *check(void) {
    EXPECT(mode_of(other) == SECCOMP_MODE_FILTER && mode_of(getpid()) == 0);
    EXPECT(filtered == hooked);
    return NULL;
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) {
    EXPECT(n && hooked > 0);
    return check();
}
