/* A process in a user namespace below its node's, as in a rootless container: the maps, ids, groups and
 * capabilities that count inside, in all its threads, and nothing outside. */
#include "user_namespace.h"
#include "others.h"
#include <grp.h>
#include <sys/mount.h>
#include <sys/resource.h>

#define UIDS "0 100000 1000\n2000 200000 10\n"
#define GIDS "0 100000 65536\n"
enum { MAPPED = 2003, UNMAPPED = 3000 };

static int tag = 4;

/* Of this thread alone: libc would do it in all. */
static const char *changes_ids(void) {
    EXPECT(syscall(SYS_setresuid, -1, UNMAPPED, -1) == -1 && errno == EINVAL);
    EXPECT(syscall(SYS_setresuid, -1, MAPPED, -1) == 0 && syscall(SYS_geteuid) == MAPPED);
    EXPECT(syscall(SYS_setresuid, -1, 0, -1) == 0 && syscall(SYS_geteuid) == 0);
    EXPECT(syscall(SYS_setresgid, -1, 65536, -1) == -1 && errno == EINVAL);
    EXPECT(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
    return NULL;
}

static const char *inside(void) {
    uid_t uids[3];
    gid_t gids[3], groups[8];
    EXPECT(getresuid(uids, uids + 1, uids + 2) == 0 && getresgid(gids, gids + 1, gids + 2) == 0);
    EXPECT(uids[0] == 0 && uids[1] == 0 && uids[2] == 0);
    EXPECT(gids[0] == 7 && gids[1] == 7 && gids[2] == 7);
    EXPECT(getgroups(8, groups) == 2 && groups[0] == 12 && groups[1] == 4321);
    EXPECT(capabilities() == (all_capabilities() & ~(1ull << CAP_SYS_TIME)));
    EXPECT(prctl(PR_CAPBSET_READ, CAP_SYS_TIME, 0, 0, 0) == 0);
    EXPECT(prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) == 1);
    EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 && prctl(PR_GET_SECUREBITS) == 0);
    TRY(changes_ids());
    return NULL;
}

static const char *setup(void) {
    const gid_t groups[] = {12, 4321};
    TRY(enter_mapped(UIDS, GIDS));
    EXPECT(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME, 0, 0, 0) == 0);
    const uint64_t kept = all_capabilities() & ~(1ull << CAP_SYS_TIME);
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    const uint32_t low = (uint32_t)kept, high = (uint32_t)(kept >> 32);
    struct __user_cap_data_struct data[2] = {{low, low, 0}, {high, high, 0}};
    EXPECT(setgroups(2, groups) == 0 && setresgid(7, 7, 7) == 0 && setresuid(0, 0, 0) == 0);
    EXPECT(syscall(SYS_capset, &head, data) == 0);
    /* The program would be executed now, and be dumpable then. */
    EXPECT(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
    return start_others(3, inside);
}

/* What its capabilities do not give it: they count in its namespace. */
static const char *powerless_outside(void) {
    EXPECT(setpriority(PRIO_PROCESS, 0, -5) == -1 && errno == EACCES);
    EXPECT(mknod("/tmp/user_namespace.device", S_IFCHR | 0600, 0x103) == -1 && errno == EPERM);
    EXPECT(open("/proc/1/mem", O_RDONLY) == -1 && (errno == EACCES || errno == ENOENT));
    EXPECT(readlink("/proc/1/root", (char[8]){0}, 8) == -1 && (errno == EACCES || errno == ENOENT));
    EXPECT(syscall(SYS_sethostname, "other", 5) == (is_parent() ? -1 : 0));
    return NULL;
}

/* What it makes with what it has: a process with namespaces of its own, in which it can mount. */
static const char *powerful_inside(void) {
    int status = 1;
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        int fine = unshare(CLONE_NEWNS) == 0 && mount("none", "/tmp", "tmpfs", 0, NULL) == 0 &&
                   chown("/tmp", MAPPED, 7) == 0 && chown("/tmp", UNMAPPED, 7) == -1;
        _exit(fine ? 0 : 1);
    }
    EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
    return NULL;
}

static const char *holds(int wanted) {
    EXPECT(tag == wanted);
    TRY(has_fields("/proc/self/uid_map", UIDS));
    TRY(has_fields("/proc/self/gid_map", GIDS));
    TRY(has_fields("/proc/self/setgroups", "allow\n"));
    for (int n = 0; n < 3; n++) TRY(ask_other());
    TRY(inside());
    TRY(powerless_outside());
    return powerful_inside();
}

static const char *check(void) { return holds(4); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
