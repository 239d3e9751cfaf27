/* Descriptors with high numbers and holes between them. */
#include "conform.h"
#include <sys/eventfd.h>
#include <sys/resource.h>

static const int numbers[] = {3, 63, 64, 511, 512, 800, 1023, 4000};
#define COUNT (sizeof numbers / sizeof *numbers)
static uint64_t add;

static const char *setup(void) {
    struct rlimit limit;
    EXPECT(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max >= 4096);
    limit.rlim_cur = limit.rlim_max;
    EXPECT(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (size_t i = 0; i < COUNT; i++) {
        int fd = eventfd((unsigned)i + 1, 0);
        EXPECT(fd >= 0);
        if (fd == numbers[i]) continue;
        EXPECT(dup3(fd, numbers[i], i % 2 ? O_CLOEXEC : 0) == numbers[i] && close(fd) == 0);
    }
    return NULL;
}

static const char *check(void) {
    for (size_t i = 0; i < COUNT; i++) {
        eventfd_t got;
        EXPECT(eventfd_read(numbers[i], &got) == 0 && got == i + 1 + add);
        EXPECT(eventfd_write(numbers[i], got) == 0);
        EXPECT(is_cloexec(numbers[i]) == (int)(i % 2));
    }
    /* 4 is the connection over which this is asked. */
    int lowest = dup(3);
    EXPECT(lowest == 5 && close(lowest) == 0);
    EXPECT(fcntl(65, F_GETFD) == -1 && fcntl(4001, F_GETFD) == -1);
    return NULL;
}

static const char *change(int n) {
    for (size_t i = 0; i < COUNT; i++) EXPECT(eventfd_write(numbers[i], (uint64_t)n) == 0);
    add += (uint64_t)n;
    return NULL;
}

static const char *verify(int n) {
    EXPECT(add == (uint64_t)n);
    return check();
}
