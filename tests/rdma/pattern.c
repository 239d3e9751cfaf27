/* A parent for the RDMA lab: memory full of 64-bit words that can each be computed from its place.
 *
 * SIGUSR1: read and check all words, in order. SIGUSR2: touch one word in each of 128 pages far from
 * each other, in an order that nobody guesses, and print the time of each.
 *
 * With the name of a file as second argument, which it fills with 8 MiB of such words and maps: SIGHUP:
 * read and check the first word of each MiB of it, and the second time all. "huge" instead of a name: the
 * memory is made of pages of 2 MiB as the kernel finds them; "hugetlb": of such that are set aside.
 * "sparse": there are 256 pages of it at every GiB of reserved address space besides; SIGHUP: read and check
 * the first word of all these and of the page behind, which nobody has touched. */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t word(uint64_t n) {
    n = (n + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    n = (n ^ (n >> 27)) * 0x94d049bb133111ebu;
    return n ^ (n >> 31);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static volatile uint64_t *memory;
static uint64_t words;

static void all(void) {
    double start = now();
    uint64_t wrong = 0;
    for (uint64_t n = 0; n < words; n++) wrong += memory[n] != word(n);
    printf("checked %lu wrong %lu us %.0f\n", words, wrong, now() - start);
}

static void some(void) {
    /* Other pages each time: those that an earlier child touched would be sent along. */
    uint64_t wrong = 0, pages = words / 512, at = word((uint64_t)now());
    printf("touched");
    for (int n = 0; n < 128; n++) {
        at = word(at);
        uint64_t place = at % pages * 512 + 7;
        double start = now();
        wrong += memory[place] != word(place);
        printf(" %.1f", now() - start);
    }
    printf(" wrong %lu\n", wrong);
}

#define HUGE (2ul << 20)
#define FILE_WORDS (1ul << 20)
static volatile uint64_t *file;

static void mapped(void) {
    static uint64_t step = 1 << 17;
    uint64_t wrong = 0, count = 0;
    for (uint64_t n = 0; n < FILE_WORDS; n += step, count++) wrong += file[n] != word(n);
    step = 1;
    printf("file %lu wrong %lu\n", count, wrong);
}

#define PARTS 64ul
static volatile uint64_t *reserved;

static int reserve(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *at = mmap(0, PARTS << 30, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED || madvise(at, PARTS << 30, MADV_NOHUGEPAGE)) return 0;
    reserved = at;
    for (uint64_t part = 0; part < PARTS; part++)
        for (uint64_t page = 0; page < 256; page++)
            reserved[part << 27 | page << 9] = word(part << 27 | page << 9);
    return 1;
}

static void parts(void) {
    uint64_t wrong = 0, pages = 0;
    for (uint64_t part = 0; part < PARTS; part++, pages += 256) {
        for (uint64_t page = 0; page < 256; page++)
            wrong += reserved[part << 27 | page << 9] != word(part << 27 | page << 9);
        wrong += reserved[part << 27 | 256 << 9] != 0;
    }
    printf("parts %lu wrong %lu\n", pages, wrong);
}

static int map(const char *name) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, FILE_WORDS * 8)) return 0;
    uint64_t *words = mmap(0, FILE_WORDS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (words == MAP_FAILED) return 0;
    for (uint64_t n = 0; n < FILE_WORDS; n++) words[n] = word(n);
    munmap(words, FILE_WORDS * 8);
    file = mmap(0, FILE_WORDS * 8, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    return file != MAP_FAILED;
}

int main(int argc, char **argv) {
    int huge = argc > 2 && !strcmp(argv[2], "huge"), set_aside = argc > 2 && !strcmp(argv[2], "hugetlb");
    int sparse = argc > 2 && !strcmp(argv[2], "sparse");
    if (argc > 2 && !huge && !set_aside && !(sparse ? reserve() : map(argv[2]))) return 1;
    words = (argc > 1 ? strtoull(argv[1], 0, 10) : 64) << 17;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (set_aside ? MAP_HUGETLB : 0);
    char *at = mmap(0, words * 8 + (set_aside ? 0 : HUGE), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED) return 1;
    memory = (uint64_t *)(((uintptr_t)at + HUGE - 1) & -HUGE);
    int advice = huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    if (!set_aside && madvise((void *)memory, words * 8, advice) && huge) return 1;
    for (uint64_t n = 0; n < words; n++) memory[n] = word(n);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, 0);
    setvbuf(stdout, 0, _IOLBF, 1 << 16);
    printf("ready\n");
    for (;;) {
        int signal;
        if (sigwait(&set, &signal)) continue;
        if (signal == SIGUSR1) all();
        else if (signal == SIGHUP) sparse ? parts() : mapped();
        else some();
    }
}
