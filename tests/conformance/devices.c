/* Devices that have no state of their own. */
#include "conform.h"

static int null, zero, full, entropy, urandom;
static int null_flags = O_RDWR;

static const char *setup(void) {
    null = open("/dev/null", O_RDWR);
    zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
    full = open("/dev/full", O_RDWR);
    entropy = open("/dev/random", O_RDONLY);
    urandom = open("/dev/urandom", O_RDONLY | O_NONBLOCK);
    EXPECT(null >= 0 && zero >= 0 && full >= 0 && entropy >= 0 && urandom >= 0);
    return NULL;
}

static const char *check(void) {
    char got[16];
    EXPECT(read(null, got, 16) == 0 && write(null, got, 16) == 16);
    EXPECT(read(zero, got, 16) == 16 && got[7] == 0 && is_cloexec(zero));
    EXPECT(write(full, got, 16) == -1 && errno == ENOSPC);
    EXPECT(read(entropy, got, 16) == 16 && read(urandom, got, 16) == 16);
    EXPECT(flags_of(urandom) & O_NONBLOCK);
    EXPECT((flags_of(null) & ~0100000) == null_flags);
    return NULL;
}

static const char *change(int n) {
    null_flags |= n == 1 ? O_APPEND : O_NONBLOCK;
    return fcntl(null, F_SETFL, null_flags) == 0 ? NULL : "F_SETFL";
}

static const char *verify(int n) {
    EXPECT(null_flags & (n == 1 ? O_APPEND : O_NONBLOCK));
    return check();
}
