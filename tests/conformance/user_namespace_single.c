/* A process that nobody helped into a user namespace: it has mapped itself alone, may not call setgroups(2)
 * for that, keeps the groups that it had, which have no name inside, and has open what tells of it. */
#include "user_namespace.h"
#include "others.h"
#include <grp.h>
#include <sys/fsuid.h>

static int namespace, map, tag = 4;

static const char *inside(void) {
    gid_t groups[8];
    EXPECT(getuid() == 0 && geteuid() == 0 && getgid() == 0 && getegid() == 0);
    EXPECT(setfsuid(-1u) == 0 && setfsgid(-1u) == 0);
    EXPECT(getgroups(8, groups) == 2 && groups[0] == 65534 && groups[1] == 65534);
    EXPECT(capabilities() == all_capabilities());
    EXPECT(syscall(SYS_setgroups, 0, NULL) == -1 && errno == EPERM);
    EXPECT(syscall(SYS_setresuid, -1, 1000, -1) == -1 && errno == EINVAL);
    EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    return NULL;
}

static const char *setup(void) {
    const gid_t groups[] = {5, 77};
    EXPECT(setgroups(2, groups) == 0 && setresgid(1001, 1001, 1001) == 0);
    EXPECT(setresuid(1000, 1000, 1000) == 0 && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
    EXPECT(unshare(CLONE_NEWUSER) == 0);
    TRY(put(getpid(), "setgroups", "deny"));
    TRY(put(getpid(), "gid_map", "0 1001 1"));
    TRY(put(getpid(), "uid_map", "0 1000 1"));
    EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    TRY(start_others(1, inside));
    namespace = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
    map = open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC);
    EXPECT(namespace >= 0 && map >= 0);
    return NULL;
}

static const char *holds(int wanted) {
    struct stat own, open_one;
    char text[80] = {0};
    unsigned at[3];
    EXPECT(tag == wanted);
    TRY(has_fields("/proc/self/uid_map", "0 1000 1\n"));
    TRY(has_fields("/proc/self/gid_map", "0 1001 1\n"));
    TRY(has_fields("/proc/self/setgroups", "deny\n"));
    EXPECT(stat("/proc/self/ns/user", &own) == 0 && fstat(namespace, &open_one) == 0);
    EXPECT(own.st_ino == open_one.st_ino);
    EXPECT(pread(map, text, sizeof text - 1, 0) > 0);
    EXPECT(sscanf(text, "%u %u %u", at, at + 1, at + 2) == 3 && at[1] == 1000 && at[2] == 1);
    TRY(ask_other());
    return inside();
}

static const char *check(void) { return holds(4); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
