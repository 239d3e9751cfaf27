/* Pseudo-terminals whose other end is another process: the parent keeps them; to a child the other
 * end is closed. */
#include "conform.h"
#include <pty.h>
#include <sys/prctl.h>
#include <termios.h>

static int master, slave, tag = 3;

/* Answers what is typed at one, types at the other what is asked for there. */
static void other(int its_slave, int its_master) {
    struct pollfd fds[2] = {{.fd = its_slave, .events = POLLIN},
                            {.fd = its_master, .events = POLLIN}};
    char byte;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (poll(fds, 2, -1) > 0)
        for (int i = 0; i < 2; i++)
            if (fds[i].revents != 0 &&
                (read(fds[i].fd, &byte, 1) != 1 || write(fds[i].fd, &byte, 1) != 1))
                _exit(0);
    _exit(1);
}

static const char *setup(void) {
    struct termios modes;
    int its_slave, its_master;
    EXPECT(openpty(&master, &its_slave, NULL, NULL, NULL) == 0);
    EXPECT(openpty(&its_master, &slave, NULL, NULL, NULL) == 0);
    EXPECT(tcgetattr(slave, &modes) == 0);
    cfmakeraw(&modes);
    EXPECT(tcsetattr(slave, TCSANOW, &modes) == 0 && tcsetattr(its_slave, TCSANOW, &modes) == 0);
    if (fork() == 0) {
        close(master);
        close(slave);
        other(its_slave, its_master);
    }
    return close(its_slave) == 0 && close(its_master) == 0 ? NULL : "close";
}

static const char *holds(int wanted) {
    char byte = 0;
    EXPECT(tag == wanted);
    if (is_parent()) {
        EXPECT(write(master, "m", 1) == 1 && read(master, &byte, 1) == 1 && byte == 'm');
        EXPECT(write(slave, "s", 1) == 1 && read(slave, &byte, 1) == 1 && byte == 's');
        return NULL;
    }
    EXPECT(read(master, &byte, 1) == -1 && errno == EIO);
    EXPECT(read(slave, &byte, 1) == 0);
    EXPECT(write(slave, "s", 1) == -1 && errno == EIO);
    return NULL;
}

static const char *check(void) { return holds(3); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
