/* A terminal of which the root has the master and a member the slave as its standard files, with
 * what a program behind it has written but nobody has read. */
/* Prepared with --tree */
#include "tree.h"
#include <pty.h>
#include <termios.h>

static struct member behind;
static int master, slave;

static const char *works(int what, int n) {
    char line[32] = "";
    (void)what;
    EXPECT(isatty(0) && isatty(1) && isatty(2));
    struct winsize size;
    EXPECT(ioctl(0, TIOCGWINSZ, &size) == 0 && size.ws_col == 77);
    ssize_t got = read(0, line, sizeof line);
    EXPECT(got == 7 && atoi(line + 4) == n);
    EXPECT(dprintf(1, "heard %d", n) == 7);
    return NULL;
}

static void on_terminal(void) {
    dup2(slave, 0), dup2(slave, 1), dup2(slave, 2);
    close(slave), close(master);
}

static const char *setup(void) {
    struct winsize size = {.ws_row = 11, .ws_col = 77};
    struct termios modes;
    EXPECT(openpty(&master, &slave, NULL, NULL, &size) == 0 && tcgetattr(slave, &modes) == 0);
    modes.c_lflag &= ~(tcflag_t)ECHO;
    modes.c_oflag &= ~(tcflag_t)OPOST;
    EXPECT(tcsetattr(slave, TCSANOW, &modes) == 0);
    TRY(begin(&behind, on_terminal, works));
    EXPECT(sleeps(behind.pid));
    return close(slave) == 0 ? NULL : "close";
}

static const char *says(int n) {
    char text[32] = "";
    EXPECT(dprintf(master, "say %02d\n", n) == 7);
    TRY(tell(&behind, 0, n));
    EXPECT(read(master, text, sizeof text) == 7 && atoi(text + 6) == n);
    return NULL;
}

static int last = 3;
static const char *check(void) { return says(last); }
static const char *change(int n) {
    last = n;
    return says(n);
}
static const char *verify(int n) { return n == last ? says(n) : "another"; }
