/* Two seccomp filters, in all threads: what they forbid stays forbidden, what they allow works. */
#include "confined.h"
#include "others.h"

static int more;

static const char *tried(void) {
    EXPECT(syscall(SYS_swapoff, "/nowhere") == -1 && errno == ENOTTY);
    EXPECT(syscall(SYS_acct, "/nowhere") == -1 && errno == EXDEV);
    return NULL;
}

static const char *forbid_all(unsigned call, int error) {
    return forbid(call, error, SECCOMP_FILTER_FLAG_TSYNC);
}

static const char *setup(void) {
    TRY(start_others(1, tried));
    EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    TRY(forbid_all(SYS_swapoff, ENOTTY));
    return forbid_all(SYS_acct, EXDEV);
}

static const char *holds(int n) {
    TRY(tried());
    TRY(ask_other());
    EXPECT(more == n);
    int third = syscall(SYS_pivot_root, "/nowhere", "/nowhere") == -1 ? errno : 0;
    EXPECT(n == 0 ? third != EBADRQC : third == (n == 1 ? EBADRQC : EBADSLT));
    return NULL;
}

static const char *check(void) { return holds(0); }
static const char *change(int n) {
    more = n;
    return forbid_all(SYS_pivot_root, n == 1 ? EBADRQC : EBADSLT);
}
static const char *verify(int n) { return holds(n); }
