/* Refused: bpf, whose maps and programs are the kernel's. */
#include "conform.h"
#include <linux/bpf.h>

static int fd;

static const char *setup(void) {
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8,
                           .max_entries = 4};
    fd = (int)syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
    EXPECT(fd >= 0);
    return NULL;
}

static const char *check(void) { return fcntl(fd, F_GETFD) == FD_CLOEXEC ? NULL : "F_GETFD"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
