/* What the programs have in common that are in a user namespace of their own (user_namespaces(7)). */
#ifndef USER_NAMESPACE_H
#define USER_NAMESPACE_H
#include "conform.h"
#include <linux/capability.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* The fields of a file of /proc/self, each after one space. */
__attribute__((unused)) static const char *has_fields(const char *path, const char *wanted) {
    char text[4096], squeezed[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC), at = 0;
    EXPECT(fd >= 0);
    ssize_t len = read(fd, text, sizeof text);
    close(fd);
    EXPECT(len >= 0);
    for (ssize_t n = 0; n < len; n++) {
        if (text[n] == ' ' && (at == 0 || squeezed[at - 1] == ' ' || squeezed[at - 1] == '\n')) continue;
        squeezed[at++] = text[n];
    }
    squeezed[at] = 0;
    EXPECT(!strcmp(squeezed, wanted));
    return NULL;
}

__attribute__((unused)) static const char *put(pid_t pid, const char *name, const char *text) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    EXPECT(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
    return NULL;
}

/* Enters a new one, for which a process that stays outside writes the maps, as newuidmap(1) does. */
__attribute__((unused)) static const char *enter_mapped(const char *uids, const char *gids) {
    int go[2], status = 1;
    char byte = 0;
    EXPECT(pipe2(go, O_CLOEXEC) == 0);
    pid_t inside = getpid(), outside = fork();
    EXPECT(outside >= 0);
    if (outside == 0) {
        int fine = read(go[0], &byte, 1) == 1 && put(inside, "gid_map", gids) == NULL &&
                   put(inside, "uid_map", uids) == NULL;
        _exit(fine ? 0 : 1);
    }
    EXPECT(unshare(CLONE_NEWUSER) == 0 && write(go[1], &byte, 1) == 1);
    EXPECT(waitpid(outside, &status, 0) == outside && status == 0);
    close(go[0]);
    close(go[1]);
    return NULL;
}

/* Capabilities of the calling thread: effective and permitted, and inheritable none. */
__attribute__((unused)) static uint64_t capabilities(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &head, data) != 0) return 1;
    if (data[0].effective != data[0].permitted || data[1].effective != data[1].permitted) return 2;
    if (data[0].inheritable != 0 || data[1].inheritable != 0) return 3;
    return data[0].effective | (uint64_t)data[1].effective << 32;
}

/* All that the kernel has. */
__attribute__((unused)) static uint64_t all_capabilities(void) {
    int last = 0;
    while (prctl(PR_CAPBSET_READ, last + 1, 0, 0, 0) >= 0) last++;
    return ~0ull >> (63 - last);
}
#endif
