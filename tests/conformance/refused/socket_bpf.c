/* Refused: bpf program, which filters a socket and which the kernel does not show. */
#include "conform.h"
#include <linux/bpf.h>

#ifndef SO_ATTACH_BPF
#define SO_ATTACH_BPF 50
#endif

static int fd;

static const char *setup(void) {
    /* r0 = 65535; exit */
    struct bpf_insn code[] = {{.code = 0xb7, .imm = 65535}, {.code = 0x95}};
    union bpf_attr program = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2};
    program.insns = (uintptr_t)code;
    program.license = (uintptr_t)"GPL";
    int filter = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &program, sizeof program);
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    EXPECT(filter >= 0 && fd >= 0);
    EXPECT(setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &filter, sizeof filter) == 0);
    return close(filter) == 0 ? NULL : "close";
}

static const char *check(void) { return fcntl(fd, F_GETFD) == 0 ? NULL : "F_GETFD"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
