/* Shared memory of huge pages (hugetlb): anonymous, a memfd that is open as well, System V. A child has
 * its content in ordinary shared memory of its own. */
#include "huge.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/wait.h>

#define HUGE (2ul << 20)
#define PAGES 5
static uint8_t *plain, *memfd, *twin, *sysv;
static int fd, id;

static const char *map(void) {
    int both = PROT_READ | PROT_WRITE;
    plain = mmap(NULL, 2 * HUGE, both, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    fd = memfd_create("conform-huge", MFD_HUGETLB | MFD_CLOEXEC);
    EXPECT(plain != MAP_FAILED && fd >= 0 && ftruncate(fd, 2 * HUGE) == 0);
    memfd = mmap(NULL, HUGE, both, MAP_SHARED, fd, HUGE);
    twin = mmap(NULL, HUGE, PROT_READ, MAP_SHARED, fd, HUGE);
    id = shmget(IPC_PRIVATE, HUGE, IPC_CREAT | SHM_HUGETLB | 0600);
    EXPECT(memfd != MAP_FAILED && twin != MAP_FAILED && id >= 0);
    sysv = shmat(id, NULL, 0);
    EXPECT(sysv != (void *)-1 && shmctl(id, IPC_RMID, NULL) == 0);
    fill(plain, HUGE, 1);
    fill(memfd + 5, 7, 1);
    fill(sysv, HUGE, 1);
    return NULL;
}

static const char *setup(void) { return with_huge_pages(PAGES, map); }

static const char *holds(unsigned seed) {
    EXPECT(filled(plain, HUGE, seed) && filled(memfd + 5, 7, seed) && filled(sysv, HUGE, seed));
    EXPECT(memfd[4] == 0 && filled(twin + 5, 7, seed) && is_cloexec(fd));
    uint8_t got[7];
    EXPECT(pread(fd, got, 7, HUGE + 5) == 7 && filled(got, 7, seed));
    for (size_t i = HUGE; !is_parent() && i < 2 * HUGE; i += 4096) EXPECT(plain[i] == 0);
    struct stat stat;
    EXPECT(fstat(fd, &stat) == 0 && stat.st_size == 2 * HUGE);
    struct shmid_ds state;
    EXPECT(shmctl(id, IPC_STAT, &state) == 0 && state.shm_segsz == HUGE && state.shm_nattch == 1);
    return NULL;
}

static const char *check(void) { return holds(1); }

/* What it forks shares it. */
static const char *change(int n) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        fill(plain, HUGE, 10 + (unsigned)n);
        fill(memfd + 5, 7, 10 + (unsigned)n);
        fill(sysv, HUGE, 10 + (unsigned)n);
        _exit(0);
    }
    EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
