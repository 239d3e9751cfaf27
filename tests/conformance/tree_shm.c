/* POSIX shared memory of several processes: mapped by two that found it by its name; unlinked; mapped
 * in one and only open in another; a named semaphore that one waits for; read only in one. */
/* Prepared with --tree */
#include "tree.h"
#include <semaphore.h>

enum { FILL, HOLDS, WROTE };
#define SIZE (64ul << 10)
static char name[64], gone[64], third[64], sem_name[64];
static uint8_t *named, *unlinked, *half, *shown;
static int half_fd;
static struct member mapper, reader, waiter;
static struct { int woken; } *common;
static sem_t *sem;

static uint8_t *find(const char *what, int prot) {
    int fd = shm_open(what, prot & PROT_WRITE ? O_RDWR : O_RDONLY, 0);
    uint8_t *at = mmap(NULL, SIZE, prot, MAP_SHARED, fd, 0);
    close(fd);
    return fd >= 0 && at != MAP_FAILED ? at : NULL;
}

static const char *works(int what, int n) {
    if (what == FILL) fill(named, SIZE / 2, (unsigned)n), fill(unlinked, SIZE / 2, (unsigned)n);
    if (what == HOLDS) EXPECT(filled(named, SIZE / 2, (unsigned)n));
    if (what == HOLDS && shown == NULL) EXPECT(filled(unlinked, SIZE / 2, (unsigned)n));
    if (what == WROTE) {
        uint8_t byte;
        EXPECT(pread(half_fd, &byte, 1, 5) == 1 && byte == n);
    }
    return NULL;
}
static void maps(void) {
    munmap(named, SIZE), munmap(half, SIZE);
    if ((named = find(name, PROT_READ | PROT_WRITE)) == NULL) _exit(5);
}
static void reads(void) {
    munmap(named, SIZE), munmap(unlinked, SIZE), munmap(half, SIZE);
    if ((named = shown = find(name, PROT_READ)) == NULL) _exit(6);
}
static void waits(void) {
    sem_t *own = sem_open(sem_name, 0);
    if (own == SEM_FAILED || sem_wait(own) != 0) _exit(7);
    common->woken++;
}

static const char *make(const char *what, uint8_t **at, int *keep) {
    int fd = shm_open(what, O_RDWR | O_CREAT | O_EXCL, 0600);
    EXPECT(fd >= 0 && ftruncate(fd, SIZE) == 0);
    *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT(*at != MAP_FAILED);
    if (keep != NULL) *keep = fd;
    return keep == NULL && close(fd) != 0 ? "close" : NULL;
}

static const char *setup(void) {
    snprintf(name, 64, "/conform-tree-%d", getpid());
    snprintf(gone, 64, "/conform-gone-%d", getpid());
    snprintf(third, 64, "/conform-half-%d", getpid());
    snprintf(sem_name, 64, "/conform-wait-%d", getpid());
    common = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    TRY(make(name, &named, NULL));
    TRY(make(gone, &unlinked, NULL));
    TRY(make(third, &half, &half_fd));
    EXPECT(shm_unlink(gone) == 0 && common != MAP_FAILED);
    sem = sem_open(sem_name, O_CREAT | O_EXCL, 0600, 0);
    EXPECT(sem != SEM_FAILED);
    fill(named, SIZE / 2, 1), fill(unlinked, SIZE / 2, 1), half[5] = 1;
    TRY(begin(&mapper, maps, works));
    TRY(begin(&reader, reads, works));
    TRY(begin(&waiter, waits, works));
    EXPECT(close(half_fd) == 0 && sleeps(waiter.pid));
    return NULL;
}

static const char *holds(int n) {
    EXPECT(filled(named, SIZE / 2, (unsigned)n) && filled(unlinked, SIZE / 2, (unsigned)n));
    EXPECT(half[5] == n);
    TRY(tell(&mapper, HOLDS, n));
    TRY(tell(&reader, HOLDS, n));
    TRY(tell(&reader, WROTE, n));
    return tell(&mapper, WROTE, n);
}

static const char *check(void) {
    EXPECT(common->woken == 0 && sleeps(waiter.pid));
    return holds(1);
}

static const char *change(int n) {
    TRY(tell(&mapper, FILL, 10 + n));
    half[5] = (uint8_t)(10 + n);
    EXPECT(sem_post(sem) == 0);
    return tell(&waiter, HOLDS, 10 + n);
}

static const char *verify(int n) {
    EXPECT(common->woken == 1);
    uint8_t *again = find(name, PROT_READ);
    EXPECT(again != NULL && filled(again, SIZE / 2, 10 + (unsigned)n) && munmap(again, SIZE) == 0);
    return holds(10 + n);
}
