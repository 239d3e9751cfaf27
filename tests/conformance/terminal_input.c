/* Terminals with what nobody has read, typed or written, and with a line that is not finished: that stays
 * with the parent, and a child's begin empty. */
#include "conform.h"
#include <pty.h>
#include <termios.h>

static int master, slave, raw_master, raw_slave, tag = 3;

static const char *setup(void) {
    struct termios modes;
    EXPECT(openpty(&master, &slave, NULL, NULL, NULL) == 0);
    EXPECT(openpty(&raw_master, &raw_slave, NULL, NULL, NULL) == 0);
    EXPECT(tcgetattr(raw_slave, &modes) == 0);
    cfmakeraw(&modes);
    EXPECT(tcsetattr(raw_slave, TCSANOW, &modes) == 0);
    EXPECT(write(master, "typed\nnot fin", 13) == 13);
    EXPECT(write(raw_master, "typed", 5) == 5 && write(raw_slave, "written", 7) == 7);
    return NULL;
}

static const char *empty(void) {
    EXPECT(!readable(master) && !readable(slave) && !readable(raw_master) && !readable(raw_slave));
    return NULL;
}

static const char *typed(const char *line, size_t len) {
    char got[64];
    struct pollfd ready = {.fd = slave, .events = POLLIN};
    EXPECT(write(master, line, len) == (ssize_t)len && poll(&ready, 1, 5000) == 1);
    EXPECT(read(slave, got, sizeof got) == (ssize_t)len && !memcmp(got, line, len));
    /* The echo. */
    EXPECT(readable(master) && read(master, got, sizeof got) == (ssize_t)len + 1);
    return NULL;
}

static const char *holds(int wanted) {
    struct termios modes;
    EXPECT(tag == wanted && tcgetattr(raw_slave, &modes) == 0 && !(modes.c_lflag & ICANON));
    if (is_parent()) {
        EXPECT(readable(master) && readable(slave));
        EXPECT(readable(raw_master) && readable(raw_slave));
        return NULL;
    }
    TRY(empty());
    TRY(typed("hello\n", 6));
    return empty();
}

static const char *check(void) { return holds(3); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
