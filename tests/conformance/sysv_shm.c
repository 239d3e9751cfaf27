/* System V shared memory: a segment with a key and one that was removed, attached whole, in part,
 * twice and for reading only; ids, owner, permissions and the number of attachments stay. */
#include "conform.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define PAGE 4096ul
#define SIZE (64 * PAGE - 100)
#define KEY 0x4d54
static int id, gone;
static uint8_t *whole, *part, *readonly, *removed;
static struct shmid_ds first;

static const char *setup(void) {
    int old = shmget(KEY, 0, 0);
    if (old >= 0) shmctl(old, IPC_RMID, NULL);
    /* So that the ids are not the first of a namespace. */
    int spare = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
    id = shmget(KEY, SIZE, IPC_CREAT | IPC_EXCL | 0640);
    gone = shmget(IPC_PRIVATE, 4 * PAGE, IPC_CREAT | 0600);
    EXPECT(spare >= 0 && id >= 0 && gone >= 0 && shmctl(spare, IPC_RMID, NULL) == 0);
    whole = shmat(id, NULL, 0);
    part = shmat(id, NULL, 0);
    readonly = shmat(id, NULL, SHM_RDONLY);
    removed = shmat(gone, NULL, 0);
    EXPECT(whole != (void *)-1 && part != (void *)-1 && readonly != (void *)-1);
    EXPECT(removed != (void *)-1 && shmctl(gone, IPC_RMID, NULL) == 0);
    /* Of the second attachment only the middle stays. */
    EXPECT(munmap(part, 16 * PAGE) == 0 && munmap(part + 32 * PAGE, 32 * PAGE) == 0);
    struct shmid_ds owner;
    EXPECT(shmctl(id, IPC_STAT, &owner) == 0);
    owner.shm_perm.uid = 12;
    owner.shm_perm.gid = 13;
    owner.shm_perm.mode = 0604;
    EXPECT(shmctl(id, IPC_SET, &owner) == 0 && shmctl(id, IPC_STAT, &first) == 0);
    fill(whole, 32 * PAGE, 1);
    fill(removed, PAGE, 2);
    return NULL;
}

static const char *holds(unsigned seed) {
    EXPECT(filled(whole, 32 * PAGE, seed) && filled(removed, PAGE, seed + 1));
    for (size_t at = 32 * PAGE; at < 64 * PAGE; at++) EXPECT(whole[at] == 0);
    EXPECT(removed[PAGE] == 0 && removed[4 * PAGE - 1] == 0);
    EXPECT(memcmp(whole + 16 * PAGE, part + 16 * PAGE, 16 * PAGE) == 0);
    EXPECT(memcmp(whole, readonly, 64 * PAGE) == 0);
    uint8_t old = part[20 * PAGE];
    part[20 * PAGE] = (uint8_t)(old + 1);
    EXPECT(whole[20 * PAGE] == part[20 * PAGE] && readonly[20 * PAGE] == (uint8_t)(old + 1));
    part[20 * PAGE] = old;
    EXPECT(mprotect(readonly, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    struct shmid_ds now;
    EXPECT(shmget(KEY, SIZE, 0) == id && shmctl(id, IPC_STAT, &now) == 0);
    EXPECT(now.shm_segsz == SIZE && now.shm_perm.__key == KEY && now.shm_perm.mode == 0604);
    EXPECT(now.shm_perm.uid == 12 && now.shm_perm.gid == 13);
    EXPECT(now.shm_perm.cuid == first.shm_perm.cuid && now.shm_perm.cgid == first.shm_perm.cgid);
    EXPECT(now.shm_nattch == 3 && now.shm_cpid == getpid());
    EXPECT(shmctl(gone, IPC_STAT, &now) == 0 && now.shm_nattch == 1);
    EXPECT((now.shm_perm.mode & 01777) == 01600 && now.shm_segsz == 4 * PAGE);
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(whole, 32 * PAGE, 10 + (unsigned)n);
    fill(removed, PAGE, 11 + (unsigned)n);
    /* Another, by itself, and away again. */
    int more = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
    EXPECT(more >= 0 && shmctl(more, IPC_RMID, NULL) == 0);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
