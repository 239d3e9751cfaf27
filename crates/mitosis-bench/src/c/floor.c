/* What the kernel alone asks for a child that has a guard: the floor of children per second. What the
 * product does is left out: there is no daemon, no pager and no plan, and nothing is written down.
 *
 * floor_fork() has a guard made (floor_guard.c), and enters its namespaces as a template does: for the
 * pids of its children itself, for all others a maker for a moment, which shares its memory and makes the
 * child, a copy of the caller. The child registers each private anonymous mapping with a userfaultfd of
 * its own and comes back from floor_fork() with 0. The caller does when child and guard are gone. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

enum { AREAS = 1024, STACK = 65536 };

static struct uffdio_range areas[AREAS];
static unsigned count;
static int orders, answers, made, target;
static pid_t maker_of_guards;
static jmp_buf caller;
static char stack[STACK] __attribute__((aligned(16)));

static int learn(void)
{
    char line[512], rights[5], name[256];
    uint64_t from, to;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && count < AREAS && fgets(line, sizeof line, maps)) {
        name[0] = 0;
        if (sscanf(line, "%lx-%lx %4s %*s %*s %*s %255s", &from, &to, rights, name) < 3)
            continue;
        if (!strcmp(rights, "rw-p") && (!name[0] || !strcmp(name, "[heap]"))) {
            areas[count].start = from;
            areas[count++].len = to - from;
        }
    }
    return maps ? fclose(maps) : -1;
}

/* Starts what makes the guards; `program` is floor_guard.c. Says how many areas each child registers. */
int floor_begin(const char *program)
{
    int in[2], out[2], byte[2];
    count = 0;
    if (learn() || pipe(in) || pipe(out) || pipe(byte))
        return -1;
    pid_t pid = vfork();
    if (pid == 0) {
        if (dup2(in[0], 0) == 0 && dup2(out[1], 1) == 1 && dup2(byte[0], 3) == 3
            && !close_range(4, ~0u, 0))
            execl(program, program, NULL);
        _exit(1);
    }
    close(in[0]);
    close(out[1]);
    close(byte[0]);
    orders = in[1];
    answers = out[0];
    made = byte[1];
    maker_of_guards = pid;
    return pid < 0 ? -1 : (int)count;
}

/* In the child. */
static void enroll(void)
{
    struct uffdio_api api = {.api = UFFD_API, .features = 0};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
        _exit(3);
    for (unsigned i = 0; i < count; i++) {
        struct uffdio_register area = {.range = areas[i], .mode = UFFDIO_REGISTER_MODE_MISSING};
        if (ioctl(fd, UFFDIO_REGISTER, &area))
            _exit(4);
    }
}

static int maker(void *unused)
{
    (void)unused;
    if (syscall(SYS_setns, target, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC))
        syscall(SYS_exit, 1);
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        enroll();
        _longjmp(caller, 1);
    }
    syscall(SYS_exit, pid < 0);
    return 0;
}

/* 0 in the child; in the caller 1, or -1 if something failed. */
int floor_fork(void)
{
    int words[2], status = -1;
    char byte = 0;
    if (write(orders, &byte, 1) != 1)
        return -1;
    /* The guard's word and its maker's, in either order. */
    for (int i = 0; i < 2; i++)
        if (read(answers, &words[i], sizeof words[i]) != sizeof words[i])
            return -1;
    pid_t guard = words[0] + words[1];
    target = (int)syscall(SYS_pidfd_open, guard, 0);
    if (guard <= 0 || target < 0 || setns(target, CLONE_NEWPID))
        return -1;
    if (_setjmp(caller))
        return 0;
    pid_t pid = clone(maker, stack + STACK, CLONE_VM | CLONE_FILES | CLONE_VFORK | SIGCHLD, NULL);
    close(target);
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        return -1;
    return write(made, &byte, 1) == 1 && waitpid(guard, &status, 0) == guard && status == 0 ? 1 : -1;
}

/* Ends what makes the guards. */
void floor_end(void)
{
    close(orders);
    close(answers);
    close(made);
    waitpid(maker_of_guards, NULL, 0);
}
