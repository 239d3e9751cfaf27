/* Machine code that the process wrote itself: writable and executable, and executable only after
 * it was written, as compilers at run time do. */
#include "conform.h"

#define PAGE 4096ul
typedef int (*function)(void);
static uint8_t *open_page, *closed_page;
static int answer = 41;

/* mov eax, VALUE; ret */
static void emit(uint8_t *at, int value) {
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

static const char *setup(void) {
    int all = PROT_READ | PROT_WRITE | PROT_EXEC, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    open_page = mmap(NULL, PAGE, all, flags, -1, 0);
    closed_page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    EXPECT(open_page != MAP_FAILED && closed_page != MAP_FAILED);
    emit(open_page, answer);
    emit(closed_page, 1000);
    EXPECT(mprotect(closed_page, PAGE, PROT_EXEC) == 0);
    return NULL;
}

static const char *holds(int wanted) {
    EXPECT(answer == wanted);
    EXPECT(((function)(uintptr_t)open_page)() == wanted);
    EXPECT(((function)(uintptr_t)closed_page)() == 1000);
    return NULL;
}

static const char *check(void) { return holds(41); }
static const char *change(int n) {
    emit(open_page, answer = 50 + n);
    return NULL;
}
static const char *verify(int n) { return holds(50 + n); }
