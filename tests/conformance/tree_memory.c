/* Memory that processes share: anonymous, mapped by three, of which one has only a part; a memfd that
 * is mapped in one and open in another; a deleted file. In it, locks and semaphores that some hold and
 * others wait for. */
/* Prepared with --tree */
#include "tree.h"
#include <pthread.h>
#include <semaphore.h>

enum { FILL, HOLDS, LOCK, UNLOCK, BOOK };
#define SIZE (1ul << 20)
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t turn;
    sem_t sem;
    int through, woken, posted;
} *shared;
static struct member holder, waiter, sleeper, other;
static uint8_t *wide, *paper;
static sem_t *named;
static int book;

static const char *works(int what, int n) {
    if (what == FILL) fill(wide + SIZE / 2, SIZE / 2, (unsigned)n);
    if (what == HOLDS) EXPECT(filled(wide + SIZE / 2, SIZE / 2, (unsigned)n));
    if (what == LOCK) EXPECT(pthread_mutex_lock(&shared->mutex) == 0);
    if (what == UNLOCK) EXPECT(pthread_mutex_unlock(&shared->mutex) == 0);
    if (what == BOOK) {
        char text[8];
        EXPECT(pread(book, text, 4, 4096) == 4 && !memcmp(text, paper + 4096, 4));
        EXPECT(text[3] == '0' + n);
    }
    return NULL;
}
static void waits(void) {
    if (pthread_mutex_lock(&shared->mutex) != 0) _exit(5);
    shared->through++;
    pthread_cond_broadcast(&shared->turn);
    pthread_mutex_unlock(&shared->mutex);
    if (sem_wait(named) != 0) _exit(6);
    shared->posted++;
}
static void sleeps_for_it(void) {
    if (sem_wait(&shared->sem) != 0) _exit(7);
    shared->woken++;
}
static void has_a_part(void) { munmap(wide, SIZE / 2); }

static const char *setup(void) {
    pthread_mutexattr_t attr;
    pthread_condattr_t also;
    char name[64];
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    wide = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(shared != MAP_FAILED && wide != MAP_FAILED);
    fill(wide, SIZE / 2, 1), fill(wide + SIZE / 2, SIZE / 2, 2);
    EXPECT((book = memfd_create("book", MFD_CLOEXEC)) >= 0 && ftruncate(book, 8192) == 0);
    paper = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, book, 0);
    EXPECT(paper != MAP_FAILED);
    memcpy(paper + 4096, "BOO0", 4);
    pthread_mutexattr_init(&attr), pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_condattr_init(&also), pthread_condattr_setpshared(&also, PTHREAD_PROCESS_SHARED);
    EXPECT(pthread_mutex_init(&shared->mutex, &attr) == 0);
    EXPECT(pthread_cond_init(&shared->turn, &also) == 0 && sem_init(&shared->sem, 1, 0) == 0);
    snprintf(name, sizeof name, "/conform-%d", getpid());
    named = sem_open(name, O_CREAT | O_EXCL, 0600, 0);
    EXPECT(named != SEM_FAILED && sem_unlink(name) == 0);
    TRY(begin(&holder, NULL, works));
    TRY(tell(&holder, LOCK, 0));
    TRY(begin(&waiter, waits, works));
    TRY(begin(&sleeper, sleeps_for_it, works));
    TRY(begin(&other, has_a_part, works));
    EXPECT(sleeps(waiter.pid) && sleeps(sleeper.pid));
    return NULL;
}

static const char *check(void) {
    EXPECT(filled(wide, SIZE / 2, 1));
    TRY(tell(&holder, HOLDS, 2));
    TRY(tell(&other, HOLDS, 2));
    TRY(tell(&other, BOOK, 0));
    EXPECT(shared->through == 0 && shared->woken == 0 && shared->posted == 0);
    EXPECT(pthread_mutex_trylock(&shared->mutex) == EBUSY);
    EXPECT(sleeps(waiter.pid) && sleeps(sleeper.pid));
    return NULL;
}

static const char *change(int n) {
    TRY(tell(&other, FILL, 10 + n));
    memset(paper + 4099, '0' + n, 1);
    TRY(tell(&holder, UNLOCK, 0));
    EXPECT(pthread_mutex_lock(&shared->mutex) == 0);
    while (shared->through == 0) EXPECT(pthread_cond_wait(&shared->turn, &shared->mutex) == 0);
    EXPECT(pthread_mutex_unlock(&shared->mutex) == 0);
    EXPECT(sem_post(&shared->sem) == 0 && sem_post(named) == 0);
    TRY(tell(&waiter, HOLDS, 10 + n));
    return tell(&sleeper, HOLDS, 10 + n);
}

static const char *verify(int n) {
    EXPECT(shared->through == 1 && shared->woken == 1 && shared->posted == 1);
    EXPECT(filled(wide, SIZE / 2, 1) && filled(wide + SIZE / 2, SIZE / 2, 10 + (unsigned)n));
    TRY(tell(&waiter, HOLDS, 10 + n));
    return tell(&holder, BOOK, n);
}
