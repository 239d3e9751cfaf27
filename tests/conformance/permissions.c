/* What a process has asked for and been given beyond the usual: the register state of AMX, of which it has
 * the permission and no tile data (nothing can be asked for where the CPU has none); the label of the machine's
 * security module, if one labels processes. */
#include "conform.h"

#define ARCH_GET_XCOMP_PERM 0x1022
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18
static unsigned long long permitted;
static int asked, refused;
static char label[256];

/* The label, or why there is none. */
static void read_label(char *to) {
    memset(to, 0, 256);
    int at = open("/proc/self/attr/current", O_RDONLY | O_CLOEXEC);
    ssize_t got = at < 0 ? -1 : read(at, to, 255);
    if (got < 0) snprintf(to, 256, "none: %s", strerror(errno));
    if (at >= 0) close(at);
}

static const char *setup(void) {
    asked = (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
    refused = asked == 0 ? 0 : errno;
    EXPECT(asked == 0 || refused == EOPNOTSUPP || refused == EINVAL);
    if (syscall(SYS_arch_prctl, ARCH_GET_XCOMP_PERM, &permitted) != 0) permitted = 0;
    EXPECT(asked != 0 || (permitted >> XFEATURE_XTILEDATA & 1) == 1);
    read_label(label);
    return NULL;
}

static const char *check(void) {
    unsigned long long now = 0;
    char read[256];
    if (syscall(SYS_arch_prctl, ARCH_GET_XCOMP_PERM, &now) != 0) now = 0;
    EXPECT(now == permitted);
    read_label(read);
    EXPECT(!strcmp(read, label));
    return NULL;
}

/* What it has it keeps, and can ask for again. */
static const char *change(int n) {
    (void)n;
    int again = (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
    EXPECT(again == asked && (again == 0 || errno == refused));
    return NULL;
}
static const char *verify(int n) { return n > 0 ? check() : "no"; }
