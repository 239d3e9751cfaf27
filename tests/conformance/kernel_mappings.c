/* What the kernel maps of its own accord: [vdso] with its data ([vvar], and [vvar_vclock] since Linux 6.13)
 * where it was, and [vsyscall]; called in place. Another kernel may have its data in other parts. */
#include "conform.h"
#include <sys/auxv.h>
#include <sys/time.h>

struct part {
    unsigned long start, end;
    char perms[5];
};
static struct part vdso, vsyscall;
static int changed;

/* Of all mappings with that name: from the first on, to the end of the last. */
static struct part find(const char *name) {
    struct part found = {0};
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        struct part part = {0};
        line[strcspn(line, "\n")] = 0;
        size_t len = strlen(line), own = strlen(name);
        if (len < own || strcmp(line + len - own, name) != 0) continue;
        if (sscanf(line, "%lx-%lx %4s", &part.start, &part.end, part.perms) != 3) continue;
        if (found.start == 0) found = part;
        found.end = part.end;
    }
    if (maps != NULL) fclose(maps);
    return found;
}

static const char *setup(void) {
    vdso = find("[vdso]"), vsyscall = find("[vsyscall]");
    return NULL;
}

static const char *holds(int n) {
    struct part now = find("[vdso]"), data = find("[vvar]"), clock = find("[vvar_vclock]");
    EXPECT(changed == n);
    EXPECT(now.start == vdso.start && getauxval(AT_SYSINFO_EHDR) == vdso.start);
    if (vdso.start != 0) {
        EXPECT(!memcmp((void *)vdso.start, "\177ELF", 4) && !strcmp(now.perms, "r-xp"));
        EXPECT(data.start != 0 && data.end <= vdso.start && data.perms[1] == '-');
        EXPECT(clock.start == 0 || (clock.start >= data.end && clock.end <= vdso.start));
    }
    struct timespec by_vdso, by_call;
    EXPECT(clock_gettime(CLOCK_REALTIME, &by_vdso) == 0);
    EXPECT(syscall(SYS_clock_gettime, CLOCK_REALTIME, &by_call) == 0);
    EXPECT(by_call.tv_sec - by_vdso.tv_sec >= 0 && by_call.tv_sec - by_vdso.tv_sec <= 1);
    now = find("[vsyscall]");
    if (is_parent()) EXPECT(!memcmp(&now, &vsyscall, sizeof now));
    if (now.perms[2] == 'x') {
        struct timeval old;
        int (*gettimeofday_there)(struct timeval *, void *) = (void *)0xffffffffff600000;
        EXPECT(gettimeofday_there(&old, NULL) == 0 && old.tv_sec - by_call.tv_sec <= 1);
    }
    return NULL;
}

static const char *check(void) { return holds(0); }
static const char *change(int n) { return changed = n, NULL; }
static const char *verify(int n) { return holds(n); }
