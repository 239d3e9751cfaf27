/* Values that prctl(2) keeps for a process or a thread: timer slack, huge pages off, merging, no
 * making executable of what was writable, machine check policy. */
/* Before Linux 6.3 a node refuses: PR_SET_MDWE (Linux 6.3) */
/* Before Linux 6.4 a node refuses: PR_SET_MEMORY_MERGE (Linux 6.4 */
#include "conform.h"
#include <sys/prctl.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
static unsigned long slack = 12345;
static int merges, denies;

static const char *setup(void) {
    EXPECT(prctl(PR_SET_TIMERSLACK, slack, 0, 0, 0) == 0);
    EXPECT(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    EXPECT(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0);
    denies = since(6, 3, "PR_SET_MDWE");
    if (denies) EXPECT(prctl(PR_SET_MDWE, 1, 0, 0, 0) == 0);
    /* Some kernels are made without it (CONFIG_KSM). */
    merges = since(6, 4, "PR_SET_MEMORY_MERGE") && prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0;
    return NULL;
}

static const char *holds(unsigned long wanted) {
    EXPECT((unsigned long)prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) == wanted);
    EXPECT(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
    EXPECT(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY);
    if (merges) EXPECT(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1);
    if (!denies) return NULL;
    EXPECT(prctl(PR_GET_MDWE, 0, 0, 0, 0) == 1);
    int all = PROT_READ | PROT_WRITE | PROT_EXEC;
    EXPECT(mmap(NULL, 4096, all, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    return NULL;
}

static const char *check(void) { return holds(12345); }
static const char *change(int n) {
    slack = 1000 * (unsigned long)n;
    return prctl(PR_SET_TIMERSLACK, slack, 0, 0, 0) == 0 ? NULL : "PR_SET_TIMERSLACK";
}
static const char *verify(int n) { return holds(1000 * (unsigned long)n); }
