/* Two seccomp filters, in all threads: what they forbid stays forbidden, what they allow works. */
#include "conform.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <sys/prctl.h>

static sem_t ask, answer;
static int others, more;

static const char *forbid(int call, int error) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = code};
    EXPECT(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
    return NULL;
}

static int tried(void) {
    int first = syscall(SYS_swapoff, "/nowhere") == -1 && errno == ENOTTY;
    return first && syscall(SYS_acct, "/nowhere") == -1 && errno == EXDEV;
}

static void *other(void *arg) {
    for (;;) {
        while (sem_wait(&ask) != 0) {
        }
        others = tried();
        sem_post(&answer);
    }
    return arg;
}

static const char *setup(void) {
    pthread_t thread;
    EXPECT(sem_init(&ask, 0, 0) == 0 && sem_init(&answer, 0, 0) == 0);
    EXPECT(pthread_create(&thread, NULL, other, NULL) == 0);
    EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    TRY(forbid(SYS_swapoff, ENOTTY));
    return forbid(SYS_acct, EXDEV);
}

static const char *holds(int n) {
    EXPECT(tried());
    others = 0;
    EXPECT(sem_post(&ask) == 0 && sem_wait(&answer) == 0 && others == 1);
    EXPECT(more == n);
    int third = syscall(SYS_pivot_root, "/nowhere", "/nowhere") == -1 ? errno : 0;
    EXPECT(n == 0 ? third != EBADRQC : third == (n == 1 ? EBADRQC : EBADSLT));
    return NULL;
}

static const char *check(void) { return holds(0); }
static const char *change(int n) {
    more = n;
    return forbid(SYS_pivot_root, n == 1 ? EBADRQC : EBADSLT);
}
static const char *verify(int n) { return holds(n); }
