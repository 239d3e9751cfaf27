/* Descriptors that tell the process by a signal when they can be read: of a socketpair, of UDP, to a
 * thread, with a signal of the program's own choice. */
#include "conform.h"
#include <pthread.h>
#include <semaphore.h>

static int pair[2], to_thread[2];
static volatile sig_atomic_t io, chosen, chosen_fd, chosen_thread;
static pid_t thread_id;
static sem_t started;

static void on_io(int signal) { io += signal == SIGIO; }
static void on_chosen(int signal, siginfo_t *info, void *context) {
    chosen += signal == SIGRTMIN + 4 && context != NULL;
    chosen_fd = info->si_fd;
    chosen_thread = (pid_t)syscall(SYS_gettid);
}

static void *sleeper(void *arg) {
    thread_id = (pid_t)syscall(SYS_gettid);
    sem_post(&started);
    for (;;) pause();
    return arg;
}

static const char *setup(void) {
    struct sigaction action = {.sa_sigaction = on_chosen, .sa_flags = SA_SIGINFO};
    pthread_t thread;
    EXPECT(signal(SIGIO, on_io) != SIG_ERR && sigaction(SIGRTMIN + 4, &action, NULL) == 0);
    EXPECT(sem_init(&started, 0, 0) == 0);
    EXPECT(pthread_create(&thread, NULL, sleeper, NULL) == 0);
    while (sem_wait(&started) != 0) {
    }
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pipe(to_thread) == 0);
    EXPECT(fcntl(pair[0], F_SETOWN, getpid()) == 0);
    EXPECT(fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    struct f_owner_ex owner = {.type = F_OWNER_TID, .pid = thread_id};
    EXPECT(fcntl(to_thread[0], F_SETOWN_EX, &owner) == 0);
    EXPECT(fcntl(to_thread[0], F_SETSIG, SIGRTMIN + 4) == 0);
    return fcntl(to_thread[0], F_SETFL, O_ASYNC) == 0 ? NULL : "F_SETFL";
}

static const char *check(void) {
    char byte;
    int io_before = io, before = chosen;
    EXPECT(write(pair[1], "x", 1) == 1);
    for (int i = 0; i < 5000 && io == io_before; i++) usleep(1000);
    EXPECT(write(to_thread[1], "x", 1) == 1);
    for (int i = 0; i < 5000 && chosen == before; i++) usleep(1000);
    EXPECT(io > io_before && chosen > before);
    EXPECT(chosen_fd == to_thread[0] && chosen_thread == thread_id);
    EXPECT(read(pair[0], &byte, 1) == 1 && read(to_thread[0], &byte, 1) == 1);
    EXPECT(fcntl(pair[0], F_GETOWN) == getpid() && fcntl(to_thread[0], F_GETSIG) == SIGRTMIN + 4);
    return NULL;
}

static const char *change(int n) { return n > 0 ? check() : "n"; }
static const char *verify(int n) { return n > 0 ? check() : "n"; }
