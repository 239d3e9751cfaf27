/* Sessions and process groups whose leaders have ended: a daemon and its child, a process of a pipeline,
 * an orphan of a session that is led, one whose leader has not been waited for. Their parent is the
 * root, which took them; it hears of nobody else. */
/* Prepared with --tree */
#include "tree.h"

enum { IDS, HIT, HITS, LEAVE };
enum { DAEMON, CHILD, GROUPED, PIPED, LED, ZOMBIES, LEADER, ALL };
static struct place {
    pid_t pid, parent, group, session;
} *places;
static struct member members[ALL];
static int ends[ALL][2], me;
static pid_t root, zombie;
static volatile sig_atomic_t hits, heard;

static void hit(int signal) { (void)signal, hits++; }
static void hears(int signal) { (void)signal, heard++; }

static const char *works(int what, int n) {
    struct place *place = &places[me];
    if (what == IDS) {
        EXPECT(getpid() == place->pid && getppid() == place->parent);
        /* A child's root leads a session of its own. */
        EXPECT(getsid(0) == (me == PIPED ? getsid(root) : place->session));
        EXPECT(getpgrp() == place->group);
    }
    if (what == HIT) EXPECT(kill(-getpgrp(), SIGUSR1) == 0);
    if (what == HITS) EXPECT(hits == n);
    if (what == LEAVE) _exit(n);
    return NULL;
}

/* Is one of them from here on. */
static void become(int which) {
    me = which;
    signal(SIGUSR1, hit);
    while (which != CHILD && which != LEADER && getppid() != root) usleep(1000);
    places[me] = (struct place){getpid(), getppid(), getpgrp(), getsid(0)};
    int own = fcntl(ends[me][1], F_DUPFD_CLOEXEC, MEMBER_FD);
    for (int i = 0; i < ALL; i++) close(ends[i][0]), close(ends[i][1]), close(members[i].fd);
    close(CONTROL_FD);
    signal(SIGCHLD, SIG_DFL);
    obey_orders(own, works);
}

static int forked(void) {
    pid_t pid = fork();
    if (pid < 0) _exit(9);
    return pid == 0;
}
static void daemonizes(void) {
    setsid();
    if (forked()) {
        if (forked()) become(CHILD);
        become(DAEMON);
    }
    /* Another one, in a group of one that has ended too. */
    if (forked()) {
        setpgid(0, 0);
        if (forked()) become(GROUPED);
        _exit(0);
    }
    wait(NULL);
    _exit(0);
}
static void pipes(void) {
    setpgid(0, 0);
    if (forked()) become(PIPED);
    _exit(0);
}
static void leads(void) {
    setsid();
    pid_t between = fork();
    if (between == 0) {
        if (forked()) become(LED);
        _exit(0);
    }
    waitpid(between, NULL, 0);
    become(LEADER);
}
static void leaves_one(void) {
    setsid();
    if (forked()) become(ZOMBIES);
    _exit(3);
}

static const char *setup(void) {
    root = getpid();
    places = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(places != MAP_FAILED && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    for (int i = 0; i < ALL; i++) {
        EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends[i]) == 0);
        EXPECT((members[i].fd = fcntl(ends[i][0], F_DUPFD_CLOEXEC, MEMBER_FD)) >= 0);
    }
    void (*begins[])(void) = {daemonizes, pipes, leads, leaves_one};
    for (int i = 0; i < 4; i++) {
        pid_t pid = fork();
        EXPECT(pid >= 0);
        if (pid == 0) begins[i]();
        if (begins[i] == leaves_one) zombie = pid;
        else if (begins[i] != leads) EXPECT(waitpid(pid, NULL, 0) == pid);
    }
    for (int i = 0; i < ALL; i++) {
        close(ends[i][0]), close(ends[i][1]);
        for (int n = 0; places[i].pid == 0 && n < 1000; n++) usleep(1000);
        EXPECT((members[i].pid = places[i].pid) != 0);
    }
    siginfo_t info;
    EXPECT(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT) == 0);
    signal(SIGCHLD, hears);
    /* Those that are meant are there. */
    EXPECT(places[DAEMON].session != places[DAEMON].pid && places[DAEMON].parent == root);
    EXPECT(places[GROUPED].session == places[DAEMON].session);
    EXPECT(places[GROUPED].group != places[GROUPED].session);
    EXPECT(places[LED].session == places[LEADER].pid && places[LED].parent == root);
    return places[ZOMBIES].session == zombie ? NULL : "the zombie leads";
}

static const char *all_there(void) {
    for (int i = 0; i < ALL; i++)
        TRY(tell(&members[i], IDS, 0));
    siginfo_t info = {0};
    EXPECT(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOHANG | WNOWAIT) == 0);
    EXPECT(info.si_pid == zombie && info.si_status == 3);
    /* And no other one: all the rest live. */
    EXPECT(kill(places[PIPED].group, 0) == -1 && errno == ESRCH);
    EXPECT(kill(places[DAEMON].session, 0) == -1 && errno == ESRCH);
    EXPECT(kill(places[GROUPED].group, 0) == -1 && errno == ESRCH);
    return NULL;
}

static const char *check(void) {
    EXPECT(heard == 0);
    TRY(all_there());
    return tell(&members[PIPED], HITS, 0);
}

static const char *change(int n) {
    struct order order = {LEAVE, n};
    int status;
    TRY(tell(&members[GROUPED], HIT, 0));
    TRY(tell(&members[GROUPED], HITS, 1));
    TRY(tell(&members[DAEMON], HITS, 0));
    EXPECT(kill(-places[PIPED].group, SIGUSR1) == 0);
    TRY(tell(&members[PIPED], HITS, 1));
    EXPECT(write(members[LED].fd, &order, sizeof order) == sizeof order);
    EXPECT(waitpid(members[LED].pid, &status, 0) == members[LED].pid && WEXITSTATUS(status) == n);
    EXPECT(heard == 1);
    /* Its child becomes the root's when it ends. */
    EXPECT(write(members[DAEMON].fd, &order, sizeof order) == sizeof order);
    EXPECT(waitpid(members[DAEMON].pid, &status, 0) == members[DAEMON].pid);
    EXPECT(WEXITSTATUS(status) == n && getpgid(members[CHILD].pid) == places[DAEMON].group);
    places[CHILD].parent = root;
    return NULL;
}

static const char *verify(int n) {
    (void)n;
    EXPECT(heard == 2);
    TRY(tell(&members[CHILD], IDS, 0));
    TRY(tell(&members[GROUPED], HITS, 1));
    return tell(&members[PIPED], HITS, 1);
}
