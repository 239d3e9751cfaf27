/* A thread in each kind of wait: none of them may end unless what it waits for comes, and then each
 * must end with it. */
#include "conform.h"
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/select.h>

#define FAR_MS 100000000
enum { READ, POLL, POLL_MS, SELECT, EPOLL, EPOLL_MS, SEM, SEM_TIMED, SIGNAL, ACCEPT, WOKEN,
       SLEEP = WOKEN, SLEEP_UNTIL, ALL };

static int pipes[ALL][2], epolls[ALL], listener, woken[ALL], bad[ALL], value = 7;
static sem_t semaphores[ALL];
static pthread_t threads[ALL];
static struct sockaddr_in address;

static int until_readable(int kind) {
    int fd = pipes[kind][0];
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    struct epoll_event event;
    fd_set set;
    switch (kind) {
    case POLL: return poll(&polled, 1, -1);
    case POLL_MS: return poll(&polled, 1, FAR_MS);
    case SELECT:
        FD_ZERO(&set);
        FD_SET(fd, &set);
        return select(fd + 1, &set, NULL, NULL, NULL);
    case EPOLL: return epoll_wait(epolls[kind], &event, 1, -1);
    case EPOLL_MS: return epoll_wait(epolls[kind], &event, 1, FAR_MS);
    default: return 1;
    }
}

static int accepted(void) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    return fd >= 0 && close(fd) == 0;
}

static int until_woken(int kind) {
    struct timespec far = {.tv_sec = time(NULL) + 100000}, long_time = {.tv_sec = 100000};
    sigset_t one;
    char byte;
    switch (kind) {
    case SEM: return sem_wait(&semaphores[kind]) == 0;
    case SEM_TIMED: return sem_timedwait(&semaphores[kind], &far) == 0;
    case SIGNAL:
        sigemptyset(&one);
        sigaddset(&one, SIGRTMIN + 9);
        return sigtimedwait(&one, NULL, &long_time) == SIGRTMIN + 9;
    case ACCEPT: return accepted();
    case SLEEP: return nanosleep(&long_time, NULL) + 5;
    case SLEEP_UNTIL: return clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &far, NULL) + 5;
    default: return until_readable(kind) == 1 && read(pipes[kind][0], &byte, 1) == 1;
    }
}

static void *waiter(void *arg) {
    int kind = (int)(intptr_t)arg;
    for (;;) {
        if (until_woken(kind) != 1) __atomic_add_fetch(&bad[kind], 1, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&woken[kind], 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static const char *setup(void) {
    sigset_t one;
    socklen_t len = sizeof address;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 9);
    EXPECT(pthread_sigmask(SIG_BLOCK, &one, NULL) == 0);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    EXPECT(listen(listener, 4) == 0);
    EXPECT(getsockname(listener, (struct sockaddr *)&address, &len) == 0);
    for (intptr_t kind = 0; kind < ALL; kind++) {
        EXPECT(pipe(pipes[kind]) == 0 && sem_init(&semaphores[kind], 0, 0) == 0);
        struct epoll_event event = {.events = EPOLLIN};
        epolls[kind] = epoll_create1(EPOLL_CLOEXEC);
        EXPECT(epoll_ctl(epolls[kind], EPOLL_CTL_ADD, pipes[kind][0], &event) == 0);
        EXPECT(pthread_create(&threads[kind], NULL, waiter, (void *)kind) == 0);
    }
    return NULL;
}

static const char *wake(int kind) {
    int fd;
    switch (kind) {
    case SEM: case SEM_TIMED: EXPECT(sem_post(&semaphores[kind]) == 0); break;
    case SIGNAL: EXPECT(pthread_kill(threads[kind], SIGRTMIN + 9) == 0); break;
    case ACCEPT:
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        EXPECT(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
        EXPECT(close(fd) == 0);
        break;
    default: EXPECT(write(pipes[kind][1], "x", 1) == 1);
    }
    return NULL;
}

static const char *holds(int wanted) {
    EXPECT(value == wanted);
    for (int kind = 0; kind < ALL; kind++) {
        int before = __atomic_load_n(&woken[kind], __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&bad[kind], __ATOMIC_SEQ_CST) != 0) {
            static char text[40];
            snprintf(text, sizeof text, "wait %d ended by itself", kind);
            return text;
        }
        if (kind >= WOKEN) continue;
        TRY(wake(kind));
        for (int i = 0; i < 10000 && woken[kind] == before; i++) usleep(1000);
        EXPECT(__atomic_load_n(&woken[kind], __ATOMIC_SEQ_CST) == before + 1);
    }
    return NULL;
}

static const char *check(void) { return holds(7); }
static const char *change(int n) {
    value = 100 + n;
    return NULL;
}
static const char *verify(int n) { return holds(100 + n); }
