/* Refused: System V shared memory, whose id would name nothing on another node. */
#include "conform.h"
#include <sys/ipc.h>
#include <sys/shm.h>

static char *at;

static const char *setup(void) {
    int id = shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0600);
    EXPECT(id >= 0);
    at = shmat(id, NULL, 0);
    EXPECT(at != (void *)-1 && shmctl(id, IPC_RMID, NULL) == 0);
    at[5000] = 5;
    return NULL;
}

static const char *check(void) {
    EXPECT(at[5000] == 5);
    return NULL;
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
