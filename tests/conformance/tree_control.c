/* A terminal that controls the session of a member, as a shell has one behind a terminal emulator: the
 * group in its foreground, whose first process has ended, the one in the background, and what is
 * typed to interrupt. */
/* Prepared with --tree */
#include "tree.h"
#include <pty.h>
#include <termios.h>

enum { PLACE, READS, HITS, STOPS, SWAP };
enum { SHELL, FRONT, BACK, ALL };
static struct place {
    pid_t pid, group;
} *places;
static struct member members[ALL];
static int ends[ALL][2], me, master;
static char slave[32];
static volatile sig_atomic_t hits;

static void hit(int signal) { (void)signal, hits++; }

/* What a member does is said over its socket: it never writes to the terminal. */
static const char *works(int what, int n) {
    char line[32] = "";
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
    EXPECT(tty >= 0);
    if (what == PLACE) {
        EXPECT(tcgetsid(tty) == places[SHELL].pid && getsid(0) == places[SHELL].pid);
        EXPECT(tcgetpgrp(tty) == places[n].group && getpgrp() == places[me].group);
    }
    if (what == READS) EXPECT(read(tty, line, sizeof line) == 3 && atoi(line) == n);
    if (what == HITS) EXPECT(hits == n);
    /* The shell stops itself if it reads from the background: nothing else would be different. */
    if (what == STOPS) {
        signal(SIGTTIN, SIG_IGN);
        EXPECT(read(tty, line, 1) == -1 && errno == EIO);
        signal(SIGTTIN, SIG_DFL);
    }
    if (what == SWAP) {
        signal(SIGTTOU, SIG_IGN);
        EXPECT(tcsetpgrp(tty, places[n].group) == 0);
        signal(SIGTTOU, SIG_DFL);
    }
    return close(tty) == 0 ? NULL : "close";
}

static void become(int which) {
    me = which;
    signal(SIGINT, hit);
    places[me] = (struct place){getpid(), getpgrp()};
    int own = fcntl(ends[me][1], F_DUPFD_CLOEXEC, MEMBER_FD);
    for (int i = 0; i < ALL; i++) close(ends[i][0]), close(ends[i][1]), close(members[i].fd);
    close(CONTROL_FD);
    obey_orders(own, works);
}

/* The slave is open in the front only: to the others it is what controls them. */
static void shell(void) {
    close(master);
    setsid();
    int tty = open(slave, O_RDWR);
    if (tty < 0) _exit(5);
    pid_t first = fork();
    if (first == 0) {
        setpgid(0, 0);
        pid_t second = fork();
        if (second == 0) become(FRONT);
        while (places[FRONT].pid == 0) usleep(1000);
        _exit(0);
    }
    waitpid(first, NULL, 0);
    pid_t back = fork();
    if (back == 0) {
        setpgid(0, 0);
        close(tty);
        become(BACK);
    }
    signal(SIGTTOU, SIG_IGN);
    if (tcsetpgrp(tty, places[FRONT].group) != 0) _exit(6);
    signal(SIGTTOU, SIG_DFL);
    close(tty);
    become(SHELL);
}

static const char *setup(void) {
    int tty;
    struct termios modes;
    /* Whoever is the root takes the orphan of the pipeline. */
    EXPECT(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    places = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(places != MAP_FAILED && openpty(&master, &tty, slave, NULL, NULL) == 0);
    EXPECT(tcgetattr(tty, &modes) == 0);
    modes.c_lflag &= ~(tcflag_t)ECHO;
    EXPECT(tcsetattr(tty, TCSANOW, &modes) == 0);
    for (int i = 0; i < ALL; i++) {
        EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends[i]) == 0);
        EXPECT((members[i].fd = fcntl(ends[i][0], F_DUPFD_CLOEXEC, MEMBER_FD)) >= 0);
    }
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        close(tty);
        shell();
    }
    for (int i = 0; i < ALL; i++) {
        close(ends[i][0]), close(ends[i][1]);
        for (int n = 0; places[i].pid == 0 && n < 1000; n++) usleep(1000);
        EXPECT((members[i].pid = places[i].pid) != 0);
    }
    return close(tty) == 0 ? NULL : "close";
}

static int front = FRONT, hits_of[ALL];

static const char *says(int n) {
    char line[8];
    snprintf(line, sizeof line, "%02d\n", n);
    EXPECT(tcgetpgrp(master) == places[front].group && tcgetsid(master) == places[SHELL].pid);
    for (int i = 0; i < ALL; i++) TRY(tell(&members[i], PLACE, front));
    EXPECT(write(master, line, 3) == 3);
    for (int i = 0; i < ALL; i++)
        if (i != front) TRY(tell(&members[i], STOPS, 0));
    TRY(tell(&members[front], READS, n));
    for (int i = 0; i < ALL; i++) TRY(tell(&members[i], HITS, hits_of[i]));
    return NULL;
}

static const char *check(void) { return says(7); }
static const char *change(int n) {
    EXPECT(write(master, "\003", 1) == 1);
    hits_of[front]++;
    TRY(says(n));
    /* The other group to the front. */
    TRY(tell(&members[SHELL], SWAP, BACK));
    front = BACK;
    return NULL;
}
static const char *verify(int n) { return says(n + 20); }
