/* Who the process is: session and group, limits, umask, directory, personality, capabilities down
 * to the ambient ones, securebits, no_new_privs, subreaper, death signal, OOM score. */
#include "conform.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static int mask = 027;

static const char *caps(int set, uint32_t *permitted) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    EXPECT(syscall(SYS_capget, &head, data) == 0);
    if (set) {
        data[0].inheritable |= 1u << CAP_NET_RAW;
        EXPECT(syscall(SYS_capset, &head, data) == 0);
    }
    *permitted = data[0].inheritable;
    return NULL;
}

const char *files(void) { return mkdir("inner", 0755) == 0 || errno == EEXIST ? NULL : "mkdir"; }

static const char *setup(void) {
    uint32_t inheritable;
    struct rlimit limit = {1111, 2222};
    EXPECT(chdir("inner") == 0);
    umask((mode_t)mask);
    EXPECT(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    EXPECT(personality(ADDR_NO_RANDOMIZE) >= 0);
    TRY(caps(1, &inheritable));
    EXPECT(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0) == 0);
    EXPECT(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT, 0, 0, 0) == 0);
    EXPECT(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT, 0, 0, 0) == 0);
    EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    EXPECT(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
    EXPECT(prctl(PR_SET_PDEATHSIG, SIGUSR2, 0, 0, 0) == 0);
    signal(SIGUSR2, SIG_IGN);
    return write_file("/proc/self/oom_score_adj", "321", 3);
}

static const char *holds(int wanted) {
    uint32_t inheritable;
    struct rlimit limit;
    char text[4096];
    int on = 0;
    EXPECT(getcwd(text, sizeof text) != NULL);
    EXPECT(strcmp(text + strlen(text) - 6, "/inner") == 0);
    EXPECT((int)umask((mode_t)wanted) == wanted);
    EXPECT(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    EXPECT(limit.rlim_cur == 1111 && limit.rlim_max == 2222);
    EXPECT(personality(0xffffffff) == ADDR_NO_RANDOMIZE);
    TRY(caps(0, &inheritable));
    EXPECT(inheritable & 1u << CAP_NET_RAW);
    EXPECT(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_RAW, 0, 0) == 1);
    EXPECT(prctl(PR_CAPBSET_READ, CAP_SYS_BOOT, 0, 0, 0) == 0);
    EXPECT(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) == SECBIT_NOROOT);
    EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    EXPECT(prctl(PR_GET_CHILD_SUBREAPER, &on, 0, 0, 0) == 0 && on == 1);
    EXPECT(prctl(PR_GET_PDEATHSIG, &on, 0, 0, 0) == 0 && on == SIGUSR2);
    int fd = open("/proc/self/oom_score_adj", O_RDONLY);
    EXPECT(fd >= 0 && read(fd, text, 3) == 3 && close(fd) == 0);
    EXPECT(memcmp(text, "321", 3) == 0);
    return NULL;
}

static const char *check(void) { return holds(mask); }
static const char *change(int n) {
    umask((mode_t)(mask = n));
    return NULL;
}
static const char *verify(int n) { return holds(n); }
