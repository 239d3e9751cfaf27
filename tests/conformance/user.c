/* A process that gave root away: user, groups, a capability that it kept, in all its threads. */
#include "conform.h"
#include "others.h"
#include <grp.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

static int tag = 2;

static const char *as_wanted(void) {
    uid_t real, effective, saved;
    gid_t groups[8];
    EXPECT(getresuid(&real, &effective, &saved) == 0 && real == 1234 && effective == 1234);
    EXPECT(saved == 1234 && getgid() == 4321 && getegid() == 4321 && setfsuid(-1u) == 1234);
    EXPECT(getgroups(8, groups) == 3 && groups[0] == 5 && groups[1] == 77 && groups[2] == 4321);
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    EXPECT(syscall(SYS_capget, &head, data) == 0);
    EXPECT(data[0].permitted == 1u << CAP_NET_BIND_SERVICE && data[0].effective == data[0].permitted);
    return NULL;
}

static const char *keep_one(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    data[0].permitted = data[0].effective = 1u << CAP_NET_BIND_SERVICE;
    EXPECT(syscall(SYS_capset, &head, data) == 0);
    return NULL;
}

static const char *setup(void) {
    gid_t groups[] = {5, 77, 4321};
    EXPECT(setgroups(3, groups) == 0 && setresgid(4321, 4321, 4321) == 0);
    EXPECT(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0 && setresuid(1234, 1234, 1234) == 0);
    TRY(keep_one());
    EXPECT(prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) == 0);
    /* Giving root away makes a process not dumpable: it says that it may be looked at. */
    EXPECT(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
    return start_others(1, as_wanted);
}

static const char *holds(int wanted) {
    TRY(as_wanted());
    EXPECT(tag == wanted && prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 1);
    TRY(ask_other());
    EXPECT(open("/proc/1/mem", O_RDONLY) == -1 && (errno == EACCES || errno == ENOENT));
    return NULL;
}

static const char *check(void) { return holds(2); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
