/* A leading thread that has ended (pthread_exit in main) while others live: they go on, with memory, files
 * and ids, and the process has its pid. */
/* Before Linux 6.9 a node refuses: whose files only a kernel since Linux 6.9 shows */
#include "conform.h"
#include <pthread.h>
#include <semaphore.h>
#include <sys/eventfd.h>

static sem_t ask, answer;
static int ended;
static int ends[2], event, count = 3;
static pid_t ids[2];
static uint8_t bytes[20000];

/* The state of the leading thread, which is not there for long in one that is just made. */
static char leader(void) {
    if (!ended) return 'Z';
    char path[64], text[256], state = 0;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)getpid());
    for (int i = 0; i < 5000 && state != 'Z'; i++) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        if (fd >= 0) close(fd);
        text[got > 0 ? got : 0] = 0;
        const char *end = strrchr(text, ')');
        state = end == NULL ? '?' : end[2];
        if (state != 'Z') usleep(1000);
    }
    return state;
}

static void *counts(void *arg) {
    ids[1] = (pid_t)syscall(SYS_gettid);
    for (;;) {
        sem_post(&answer);
        while (sem_wait(&ask) != 0) {
        }
        count++;
    }
    return arg;
}

static void *answers(void *arg) {
    ids[0] = (pid_t)syscall(SYS_gettid);
    if (leader() != 'Z' || serve() != 0) _exit(1);
    return arg;
}

static const char *setup(void) {
    pthread_t id;
    EXPECT(sem_init(&ask, 0, 0) == 0 && sem_init(&answer, 0, 0) == 0);
    EXPECT(pipe2(ends, O_CLOEXEC) == 0 && write(ends[1], "held", 4) == 4);
    event = eventfd(5, EFD_CLOEXEC | EFD_NONBLOCK);
    EXPECT(event >= 0);
    fill(bytes, sizeof bytes, 1);
    EXPECT(pthread_create(&id, NULL, counts, NULL) == 0 && sem_wait(&answer) == 0);
    ended = since(6, 9, "a leading thread that has ended");
    if (!ended) return NULL;
    EXPECT(pthread_create(&id, NULL, answers, NULL) == 0);
    pthread_exit(NULL);
}

static const char *holds(int n) {
    int waiting = 0;
    char name[16] = {0};
    uint64_t value = 0;
    EXPECT(leader() == 'Z');
    EXPECT(!ended || (ids[0] == (pid_t)syscall(SYS_gettid) && ids[0] != getpid()));
    EXPECT(syscall(SYS_tgkill, getpid(), ids[1], 0) == 0);
    EXPECT(getpid() == getpgid(0) || is_parent());
    EXPECT(count == 3 + n && filled(bytes, sizeof bytes, 1 + (unsigned)n));
    EXPECT(ioctl(ends[0], FIONREAD, &waiting) == 0 && waiting == 4);
    EXPECT(read(event, &value, sizeof value) == sizeof value && value == 5);
    EXPECT(write(event, &value, sizeof value) == sizeof value);
    EXPECT(write(ends[1], "more", 4) == 4 && read(ends[0], name, 4) == 4);
    return NULL;
}

static const char *check(void) { return holds(0); }
static const char *change(int n) {
    for (int i = 0; i < n; i++) EXPECT(sem_post(&ask) == 0 && sem_wait(&answer) == 0);
    fill(bytes, sizeof bytes, 1 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(n); }
