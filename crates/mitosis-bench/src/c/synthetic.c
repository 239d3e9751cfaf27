/* A parent of so many MiB, each page of known content.
 * Arguments: port, MiB, "small" or "huge" (pages), "spin" or "idle".
 * While it spins it looks at the clock and keeps each gap. Commands, one in a connection:
 *   gaps      all gaps since the last answer, as pairs of CLOCK_MONOTONIC ns
 *   touch P   reads one word of P % of the pages, evenly scattered
 *   write P   writes one word of them
 *   fork P    a plain fork(), whose child does touch P
 *   loop S    on each processor: clone into a container's namespaces, _exit, waitpid, for S s
 *   floor S   the same with what the kernel asks for a child that has a guard (floor.c), in four loops on
 *             each processor
 *   nothing
 * With a fifth argument "brief" a copy of it in another process ends at once: whoever finds another
 * parent process than at the start is one. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, GAP_NS = 40000, GAPS = 1000 };

int floor_begin(const char *program);
int floor_fork(void);
void floor_end(void);

static unsigned char *memory;
static size_t pages;
static uint64_t gaps[GAPS][2];
static unsigned gap_count;

struct result {
    uint64_t start_ns, ns, pages;
    int right;
};

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t word(size_t index)
{
    return (index + 1) * 0x9e3779b97f4a7c15u;
}

static uint64_t spin(uint64_t last, int count)
{
    while (count--) {
        uint64_t t = now();
        if (t - last > GAP_NS) {
            gaps[gap_count % GAPS][0] = last;
            gaps[gap_count++ % GAPS][1] = t;
        }
        last = t;
    }
    return last;
}

static struct result touch(double percent, int writes)
{
    struct result r = {0, 0, 0, 1};
    double step = 100.0 / percent;
    uint64_t from = now();
    for (double at = 0; percent > 0 && at < (double)pages; at += step) {
        volatile uint64_t *p = (void *)(memory + (size_t)at * PAGE);
        if (writes)
            *p = word((size_t)at);
        else
            r.right &= *p == word((size_t)at);
        r.pages++;
    }
    r.ns = now() - from;
    return r;
}

static struct result plain_fork(double percent, uint64_t *gap)
{
    struct result r = {0};
    int ends[2];
    if (pipe(ends))
        exit(1);
    uint64_t from = now();
    pid_t pid = fork();
    uint64_t t = now();
    if (pid == 0) {
        r = touch(percent, 0);
        r.start_ns = t - from;
        _exit(write(ends[1], &r, sizeof r) != sizeof r);
    }
    *gap = t - from;
    if (read(ends[0], &r, sizeof r) != sizeof r)
        r.right = 0;
    waitpid(pid, NULL, 0);
    close(ends[0]);
    close(ends[1]);
    return r;
}

static uint64_t forks(uint64_t end)
{
    enum { NAMESPACES = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | SIGCHLD };
    uint64_t count = 0;
    for (; now() < end; count++) {
        pid_t pid = (pid_t)syscall(SYS_clone, NAMESPACES, 0, 0, 0, 0);
        if (pid == 0)
            _exit(0);
        waitpid(pid, NULL, 0);
    }
    return count;
}

static uint64_t guarded_forks(uint64_t end)
{
    uint64_t count = 0;
    if (floor_begin("/run/lab/floor_guard") < 0)
        _exit(1);
    for (; now() < end; count++) {
        int made = floor_fork();
        if (made <= 0)
            _exit(made < 0);
    }
    floor_end();
    return count;
}

/* Forks made in `each` loops on each processor, and the ns that took. */
static uint64_t loop(double seconds, int each, uint64_t (*make)(uint64_t), uint64_t *spent)
{
    cpu_set_t set;
    int ends[2];
    uint64_t from = now(), total = 0, count;
    if (pipe(ends) || sched_getaffinity(0, sizeof set, &set))
        exit(1);
    int workers = CPU_COUNT(&set) * each;
    for (int i = 0; i < workers; i++) {
        if (fork())
            continue;
        count = make(from + (uint64_t)(seconds * 1e9));
        _exit(write(ends[1], &count, sizeof count) != sizeof count);
    }
    close(ends[1]);
    for (int i = 0; i < workers; i++)
        if (read(ends[0], &count, sizeof count) == sizeof count)
            total += count;
    while (wait(NULL) > 0)
        ;
    *spent = now() - from;
    close(ends[0]);
    return total;
}

static void answer(int peer)
{
    char line[64] = {0};
    double number = 0;
    if (read(peer, line, sizeof line - 1) <= 0)
        return;
    char *blank = strchr(line, ' ');
    if (blank)
        number = atof(blank);
    if (!strncmp(line, "gaps", 4)) {
        unsigned count = gap_count < GAPS ? gap_count : GAPS;
        dprintf(peer, "[");
        for (unsigned i = 0; i < count; i++)
            dprintf(peer, "%s[%lu,%lu]", i ? "," : "", gaps[i][0], gaps[i][1]);
        dprintf(peer, "]");
        return;
    }
    if (!strncmp(line, "loop", 4) || !strncmp(line, "floor", 5)) {
        int floor = line[0] == 'f';
        uint64_t spent;
        uint64_t made = loop(number, floor ? 4 : 1, floor ? guarded_forks : forks, &spent);
        dprintf(peer, "[%lu,%lu]", made, spent);
        return;
    }
    struct result r = {0, 0, 0, 1};
    uint64_t gap = 0;
    if (!strncmp(line, "touch", 5))
        r = touch(number, 0);
    else if (!strncmp(line, "write", 5))
        r = touch(number, 1);
    else if (!strncmp(line, "fork", 4))
        r = plain_fork(number, &gap);
    dprintf(peer, "{\"start_ns\":%lu,\"gap_ns\":%lu,\"ns\":%lu,\"pages\":%lu,\"right\":%s}\n",
            r.start_ns, gap, r.ns, r.pages, r.right ? "true" : "false");
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    size_t bytes = (size_t)atol(argv[2]) << 20, align = 2u << 20;
    int spins = !strcmp(argv[4], "spin"), brief = argc > 5;
    unsigned char *at = mmap(NULL, bytes + align, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return 1;
    memory = (unsigned char *)(((uintptr_t)at + align - 1) & ~(align - 1));
    pages = bytes / PAGE;
    madvise(memory, bytes, strcmp(argv[3], "huge") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    for (size_t i = 0; i < pages; i++)
        *(uint64_t *)(void *)(memory + i * PAGE) = word(i);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&to, sizeof to) || listen(listener, 16))
        return 1;
    pid_t home = getppid();
    for (uint64_t last = now();;) {
        if (brief && getppid() != home)
            _exit(0);
        if (spins) {
            last = spin(last, 2000);
        } else {
            struct pollfd ready = {.fd = listener, .events = POLLIN};
            poll(&ready, 1, brief ? 2 : -1);
        }
        int peer = accept4(listener, NULL, NULL, 0);
        if (peer < 0)
            continue;
        spin(last, spins);
        answer(peer);
        gap_count = 0;
        close(peer);
        last = now();
    }
}
