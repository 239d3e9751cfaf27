/* Pseudo-terminals whose two ends are the process's: numbers, modes, size, and what goes
 * through. */
#include "conform.h"
#include <pty.h>
#include <termios.h>

static int master, slave, raw_master, raw_slave, rows = 33;
static char name[64], raw_name[64];

static const char *setup(void) {
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = 111};
    struct termios modes;
    EXPECT(openpty(&master, &slave, name, NULL, &size) == 0);
    EXPECT(openpty(&raw_master, &raw_slave, raw_name, NULL, NULL) == 0);
    EXPECT(tcgetattr(raw_slave, &modes) == 0);
    cfmakeraw(&modes);
    EXPECT(tcsetattr(raw_slave, TCSANOW, &modes) == 0);
    EXPECT(fcntl(raw_master, F_SETFL, O_NONBLOCK) == 0 && fcntl(slave, F_SETFD, FD_CLOEXEC) == 0);
    return NULL;
}

static const char *holds(int wanted) {
    struct winsize size;
    struct termios modes;
    char text[64];
    EXPECT(rows == wanted && isatty(slave) && isatty(raw_slave) && is_cloexec(slave));
    EXPECT(ioctl(master, TIOCGWINSZ, &size) == 0 && size.ws_row == rows && size.ws_col == 111);
    EXPECT(tcgetattr(slave, &modes) == 0 && (modes.c_lflag & (ICANON | ECHO)) == (ICANON | ECHO));
    EXPECT(tcgetattr(raw_slave, &modes) == 0 && (modes.c_lflag & (ICANON | ECHO)) == 0);
    EXPECT(!strcmp(ttyname(slave), name) && !strcmp(ptsname(raw_master), raw_name));
    /* A line, which the terminal echoes and ends. */
    EXPECT(write(master, "hello\n", 6) == 6 && read(slave, text, 64) == 6);
    EXPECT(read(master, text, 64) == 7 && !memcmp(text, "hello\r\n", 7));
    EXPECT(write(raw_slave, "\n\3", 2) == 2);
    struct pollfd ready = {.fd = raw_master, .events = POLLIN};
    EXPECT(poll(&ready, 1, 5000) == 1 && read(raw_master, text, 64) == 2 && text[1] == 3);
    EXPECT(read(raw_master, text, 64) == -1 && errno == EAGAIN);
    return NULL;
}

static const char *check(void) { return holds(33); }

static const char *change(int n) {
    struct winsize size = {.ws_row = (unsigned short)(rows = 50 + n), .ws_col = 111};
    return ioctl(slave, TIOCSWINSZ, &size) == 0 ? NULL : "TIOCSWINSZ";
}

static const char *verify(int n) { return holds(50 + n); }
