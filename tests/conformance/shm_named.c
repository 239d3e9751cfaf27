/* POSIX shared memory and named semaphores: open and mapped, only mapped, only open, unlinked; found
 * by their names. A child has its own under the same names, with its own owner and permissions. */
#include "conform.h"
#include <semaphore.h>
#include <sys/wait.h>

#define SIZE 8192ul
static char both_name[64], map_name[64], open_name[64], gone_name[64], sem_name[64];
static uint8_t *both, *map, *gone;
static int both_fd, open_fd;
static sem_t *sem;

static int make(const char *name, mode_t mode) {
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, mode);
    return fd >= 0 && ftruncate(fd, SIZE) == 0 ? fd : -1;
}
static uint8_t *see(int fd) { return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0); }

static const char *setup(void) {
    int fd;
    snprintf(both_name, 64, "/conform-both-%d", getpid());
    snprintf(map_name, 64, "/conform-map-%d", getpid());
    snprintf(open_name, 64, "/conform-open-%d", getpid());
    snprintf(gone_name, 64, "/conform-gone-%d", getpid());
    snprintf(sem_name, 64, "/conform-sem-%d", getpid());
    EXPECT((both_fd = make(both_name, 0640)) >= 0 && (both = see(both_fd)) != MAP_FAILED);
    EXPECT(fchown(both_fd, 1000, 1001) == 0);
    EXPECT((fd = make(map_name, 0600)) >= 0 && (map = see(fd)) != MAP_FAILED && close(fd) == 0);
    EXPECT((open_fd = make(open_name, 0604)) >= 0);
    EXPECT((fd = make(gone_name, 0600)) >= 0 && (gone = see(fd)) != MAP_FAILED && close(fd) == 0);
    EXPECT(shm_unlink(gone_name) == 0);
    sem = sem_open(sem_name, O_CREAT | O_EXCL, 0600, 3);
    EXPECT(sem != SEM_FAILED);
    fill(both, SIZE, 1), fill(map + 4096, 4096, 1), fill(gone, SIZE, 1);
    EXPECT(pwrite(open_fd, "open 0", 6, 100) == 6 && lseek(open_fd, 7, SEEK_SET) == 7);
    return NULL;
}

/* By name, as whoever does not inherit it finds it. */
static const char *at_name(const char *name, mode_t mode, unsigned seed) {
    static uint8_t bytes[SIZE];
    struct stat stat;
    int fd = shm_open(name, O_RDWR, 0);
    EXPECT(fd >= 0 && fstat(fd, &stat) == 0 && pread(fd, bytes, SIZE, 0) == (ssize_t)SIZE);
    EXPECT(stat.st_mode == (S_IFREG | mode) && stat.st_size == (off_t)SIZE && close(fd) == 0);
    return filled(bytes + 4096 * (mode != 0640), SIZE - 4096 * (mode != 0640), seed) ? NULL : name;
}

static const char *holds(unsigned seed, char last) {
    char text[6];
    struct stat stat;
    TRY(at_name(both_name, 0640, seed));
    TRY(at_name(map_name, 0600, seed));
    EXPECT(filled(both, SIZE, seed) && filled(map + 4096, 4096, seed) && filled(gone, SIZE, seed));
    EXPECT(pread(open_fd, text, 6, 100) == 6 && !memcmp(text, "open ", 5) && text[5] == last);
    EXPECT(lseek(open_fd, 0, SEEK_CUR) == 7 && fstat(open_fd, &stat) == 0);
    EXPECT(stat.st_mode == (S_IFREG | 0604) && stat.st_size == (off_t)SIZE);
    EXPECT(fstat(both_fd, &stat) == 0 && stat.st_uid == 1000 && stat.st_gid == 1001);
    EXPECT(shm_open(gone_name, O_RDWR, 0) == -1 && errno == ENOENT);
    return NULL;
}

static const char *counts(int wanted) {
    int value;
    sem_t *again = sem_open(sem_name, 0);
    EXPECT(again != SEM_FAILED && sem_getvalue(again, &value) == 0 && value == wanted);
    EXPECT(sem_close(again) == 0 && sem_getvalue(sem, &value) == 0 && value == wanted);
    return NULL;
}

static const char *check(void) {
    TRY(holds(1, '0'));
    return counts(3);
}

/* By another process, which knows the names only. */
static const char *change(int n) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        char digit = (char)('0' + n);
        int fd = shm_open(both_name, O_RDWR, 0), second = shm_open(map_name, O_RDWR, 0);
        uint8_t *here = see(fd), *there = see(second);
        if (here == MAP_FAILED || there == MAP_FAILED) _exit(1);
        fill(here, SIZE, 10 + (unsigned)n), fill(there + 4096, 4096, 10 + (unsigned)n);
        fill(gone, SIZE, 10 + (unsigned)n);
        sem_t *again = sem_open(sem_name, 0);
        if (again == SEM_FAILED) _exit(2);
        for (int i = 0; i < n; i++) sem_post(again);
        _exit(pwrite(open_fd, &digit, 1, 105) == 1 ? 0 : 3);
    }
    EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    return NULL;
}

static const char *verify(int n) {
    TRY(holds(10 + (unsigned)n, (char)('0' + n)));
    return counts(3 + n);
}
