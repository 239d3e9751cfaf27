/* Stacks that the process made itself and switches between, as green threads do. */
#include "conform.h"
#include <ucontext.h>

#define COUNT 50
static ucontext_t scheduler, routines[COUNT];
static uint8_t *stacks[COUNT];
static int turns[COUNT], step = 1;

static void body(int n) {
    int local[64];
    for (int i = 0; i < 64; i++) local[i] = n * 1000 + i;
    for (;;) {
        for (int i = 0; i < 64; i++)
            if (local[i] != n * 1000 + i) turns[n] = -1000000;
        turns[n] += step;
        swapcontext(&routines[n], &scheduler);
    }
}

static const char *round_of_all(void) {
    for (int n = 0; n < COUNT; n++) EXPECT(swapcontext(&scheduler, &routines[n]) == 0);
    return NULL;
}

static const char *setup(void) {
    for (int n = 0; n < COUNT; n++) {
        stacks[n] = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        EXPECT(stacks[n] != MAP_FAILED && getcontext(&routines[n]) == 0);
        routines[n].uc_stack.ss_sp = stacks[n];
        routines[n].uc_stack.ss_size = 65536;
        makecontext(&routines[n], (void (*)(void))body, 1, n);
    }
    return round_of_all();
}

static const char *check(void) {
    int before = turns[0];
    TRY(round_of_all());
    for (int n = 0; n < COUNT; n++) EXPECT(turns[n] == before + step);
    return NULL;
}

static const char *change(int n) {
    step = 100 * n;
    return NULL;
}

static const char *verify(int n) {
    EXPECT(step == 100 * n);
    return check();
}
