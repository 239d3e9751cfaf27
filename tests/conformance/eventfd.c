/* An eventfd with a count, and one that is a semaphore; one of them non-blocking. */
#include "conform.h"
#include <sys/eventfd.h>

static int plain, semaphore;
static uint64_t value = 0x1234567890;

static const char *setup(void) {
    plain = eventfd(0, EFD_NONBLOCK);
    semaphore = eventfd(5, EFD_SEMAPHORE | EFD_CLOEXEC);
    EXPECT(plain >= 0 && semaphore >= 0);
    EXPECT(eventfd_write(plain, value) == 0);
    return NULL;
}

static const char *holds(uint64_t wanted) {
    eventfd_t count;
    EXPECT(eventfd_read(plain, &count) == 0 && count == wanted);
    EXPECT(eventfd_read(plain, &count) == -1 && errno == EAGAIN);
    EXPECT(eventfd_write(plain, wanted) == 0);
    EXPECT(eventfd_read(semaphore, &count) == 0 && count == 1);
    EXPECT(eventfd_write(semaphore, 1) == 0);
    EXPECT(is_cloexec(semaphore) && !is_cloexec(plain));
    return NULL;
}

static const char *check(void) { return holds(value); }
static const char *change(int n) { return eventfd_write(plain, (uint64_t)n) == 0 ? NULL : "write"; }
static const char *verify(int n) { return holds(value + (uint64_t)n); }
