/* Every resource limit, soft and hard. */
#include "conform.h"
#include <sys/resource.h>

static struct rlimit wanted[RLIM_NLIMITS];

static const char *setup(void) {
    for (int i = 0; i < RLIM_NLIMITS; i++) EXPECT(getrlimit(i, &wanted[i]) == 0);
    wanted[RLIMIT_CORE] = (struct rlimit){0, 4096};
    wanted[RLIMIT_CPU] = (struct rlimit){100000, 200000};
    wanted[RLIMIT_FSIZE] = (struct rlimit){1ul << 40, 1ul << 41};
    wanted[RLIMIT_STACK] = (struct rlimit){4ul << 20, 16ul << 20};
    wanted[RLIMIT_NOFILE] = (struct rlimit){777, 888};
    wanted[RLIMIT_MEMLOCK] = (struct rlimit){4096, 8192};
    wanted[RLIMIT_AS] = (struct rlimit){1ul << 44, 1ul << 45};
    wanted[RLIMIT_SIGPENDING] = (struct rlimit){50, 60};
    wanted[RLIMIT_NICE] = (struct rlimit){0, 0};
    for (int i = 0; i < RLIM_NLIMITS; i++) EXPECT(setrlimit(i, &wanted[i]) == 0);
    return NULL;
}

static const char *check(void) {
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit now;
        EXPECT(getrlimit(i, &now) == 0);
        EXPECT(now.rlim_cur == wanted[i].rlim_cur && now.rlim_max == wanted[i].rlim_max);
    }
    return NULL;
}

static const char *change(int n) {
    wanted[RLIMIT_NOFILE].rlim_cur = 500 + (unsigned)n;
    return setrlimit(RLIMIT_NOFILE, &wanted[RLIMIT_NOFILE]) == 0 ? NULL : "setrlimit";
}

static const char *verify(int n) {
    EXPECT(wanted[RLIMIT_NOFILE].rlim_cur == 500 + (unsigned)n);
    return check();
}
