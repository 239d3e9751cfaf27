/* A process with several threads as a container has it, for whoever includes this to say as whom (UID, GID).
 * What a container's runtime does before it starts a program: a filter of the shape of Docker's
 * default one, installed with CAP_SYS_ADMIN and without no_new_privs, and then less capabilities. */
#ifndef CONTAINER_H
#define CONTAINER_H
#include "conform.h"
#include "others.h"
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/personality.h>
#include <sys/prctl.h>

/* Docker's default set: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
 * net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap. */
#define CONTAINER_CAPS 0xa80425fbu

#define FIELD(name) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, name))
#define LOW(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * (n))
#define HIGH(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * (n) + 4)
#define IF(operation, value, yes, no) BPF_JUMP(BPF_JMP | operation | BPF_K, value, yes, no)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)
#define REFUSE(error) RETURN(SECCOMP_RET_ERRNO | (error))

/* What is not allowed has EPERM. */
static const char *container_filter(void) {
    static const uint16_t forbidden[] = {
        SYS_acct, SYS_add_key, SYS_bpf, SYS_clock_settime, SYS_delete_module, SYS_finit_module,
        SYS_get_mempolicy, SYS_init_module, SYS_ioperm, SYS_iopl, SYS_kcmp, SYS_kexec_load, SYS_keyctl,
        SYS_mbind, SYS_mount, SYS_move_pages, SYS_open_by_handle_at, SYS_perf_event_open,
        SYS_pivot_root, SYS_ptrace, SYS_quotactl, SYS_reboot, SYS_request_key, SYS_set_mempolicy,
        SYS_setns, SYS_settimeofday, SYS_swapoff, SYS_swapon, SYS_umount2, SYS_unshare,
        SYS_userfaultfd, SYS_process_vm_readv, SYS_process_vm_writev};
    const size_t count = sizeof forbidden / sizeof *forbidden;
    struct sock_filter code[200];
    size_t at = 0;
    const struct sock_filter head[] = {
        FIELD(arch), IF(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0), REFUSE(ENOSYS),
        FIELD(nr), IF(BPF_JGE, 0x40000000, 0, 1), REFUSE(ENOSYS),
        /* No clone3, whose flags a filter cannot see, and no namespaces by clone. */
        IF(BPF_JEQ, SYS_clone3, 0, 1), REFUSE(ENOSYS),
        IF(BPF_JEQ, SYS_clone, 0, 4), LOW(0), IF(BPF_JSET, 0x7e020000, 0, 1), REFUSE(EPERM),
        RETURN(SECCOMP_RET_ALLOW),
        /* Two personalities. */
        IF(BPF_JEQ, SYS_personality, 0, 7), HIGH(0), IF(BPF_JEQ, 0, 0, 4), LOW(0),
        IF(BPF_JEQ, 0, 3, 0), IF(BPF_JEQ, ADDR_NO_RANDOMIZE, 2, 0), IF(BPF_JEQ, 0xffffffff, 1, 0),
        REFUSE(EPERM), FIELD(nr),
    };
    memcpy(code, head, sizeof head);
    at = sizeof head / sizeof *head;
    for (size_t n = 0; n < count; n++) {
        code[at++] = (struct sock_filter)IF(BPF_JEQ, forbidden[n], 0, 1);
        code[at++] = (struct sock_filter)REFUSE(EPERM);
    }
    code[at++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    struct sock_fprog program = {.len = (unsigned short)at, .filter = code};
    EXPECT(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
    return NULL;
}

/* As the runtime of a container: its bounding set, its filter, then who it runs as. */
static const char *enter_container(void) {
    const uint32_t kept = UID == 0 ? CONTAINER_CAPS : 0;
    for (int cap = 0; cap < 41; cap++) {
        int outside = cap >= 32 || (CONTAINER_CAPS >> cap & 1) == 0;
        EXPECT(!outside || prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0);
    }
    TRY(container_filter());
    const gid_t gid = GID;
    EXPECT(setgroups(1, &gid) == 0 && setresgid(GID, GID, GID) == 0 && setresuid(UID, UID, UID) == 0);
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{kept, kept, 0}, {0, 0, 0}};
    EXPECT(syscall(SYS_capset, &head, data) == 0);
    /* The program would be executed now, and be dumpable then. */
    EXPECT(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
    return NULL;
}

/* Whether this thread is in it. */
static const char *in_container(void) {
    const uint32_t kept = UID == 0 ? CONTAINER_CAPS : 0;
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    uid_t uids[3];
    gid_t gids[3];
    EXPECT(getresuid(uids, uids + 1, uids + 2) == 0 && getresgid(gids, gids + 1, gids + 2) == 0);
    EXPECT(uids[0] == UID && uids[1] == UID && uids[2] == UID);
    EXPECT(gids[0] == GID && gids[1] == GID && gids[2] == GID);
    EXPECT(syscall(SYS_capget, &head, data) == 0);
    EXPECT(data[0].effective == kept && data[0].permitted == kept && data[0].inheritable == 0);
    EXPECT(data[1].effective == 0 && data[1].permitted == 0 && data[1].inheritable == 0);
    for (int cap = 0; cap < 41; cap++) {
        int inside = cap < 32 && (CONTAINER_CAPS >> cap & 1) != 0;
        EXPECT(prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == inside);
    }
    EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0);
    EXPECT(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 1);
    EXPECT(prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == SECCOMP_MODE_FILTER);
    EXPECT(syscall(SYS_keyctl, 0, -3, 0) == -1 && errno == EPERM);
    EXPECT(syscall(SYS_unshare, 0) == -1 && errno == EPERM);
    EXPECT(syscall(SYS_clone3, NULL, 0) == -1 && errno == ENOSYS);
    EXPECT(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0) == -1 && errno == EPERM);
    EXPECT(personality(READ_IMPLIES_EXEC) == -1 && errno == EPERM && personality(0xffffffff) == 0);
    return NULL;
}

static int tag = 4;

static const char *setup(void) {
    TRY(enter_container());
    return start_others(3, in_container);
}

static const char *holds(int wanted) {
    EXPECT(tag == wanted);
    for (int n = 0; n < 3; n++) TRY(ask_other());
    return in_container();
}

static const char *check(void) { return holds(4); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
#endif
