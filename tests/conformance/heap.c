/* The heap by brk(2), to be grown and shrunk further, and much malloc(3) from many threads. */
#include "conform.h"
#include <pthread.h>

#define THREADS 6
#define BLOCKS 200
static uint8_t *low, *blocks[THREADS][BLOCKS];
static size_t held = 16 * 4096;

static size_t size_of(size_t t, size_t i) { return 16 + (t * 977 + i * 131) % 9000; }

static void *allocate(void *arg) {
    size_t t = (size_t)(intptr_t)arg;
    for (size_t i = 0; i < BLOCKS; i++) {
        blocks[t][i] = malloc(size_of(t, i));
        fill(blocks[t][i], size_of(t, i), (unsigned)(t * BLOCKS + i));
    }
    return NULL;
}

static const char *setup(void) {
    pthread_t threads[THREADS];
    low = sbrk((intptr_t)held);
    EXPECT(low != (void *)-1);
    fill(low, held, 1);
    for (intptr_t t = 0; t < THREADS; t++)
        EXPECT(pthread_create(&threads[t], NULL, allocate, (void *)t) == 0);
    for (int t = 0; t < THREADS; t++) EXPECT(pthread_join(threads[t], NULL) == 0);
    return NULL;
}

static const char *holds(unsigned seed) {
    EXPECT(filled(low, held, seed));
    for (size_t t = 0; t < THREADS; t++)
        for (size_t i = 0; i < BLOCKS; i++) {
            EXPECT(filled(blocks[t][i], size_of(t, i), (unsigned)(t * BLOCKS + i)));
            if (i % 20 != 0) continue;
            free(blocks[t][i]);
            blocks[t][i] = malloc(size_of(t, i));
            fill(blocks[t][i], size_of(t, i), (unsigned)(t * BLOCKS + i));
        }
    uint8_t *end = sbrk(0);
    EXPECT(end != (void *)-1 && sbrk(40 * 4096) == end && sbrk(-40 * 4096) == end + 40 * 4096);
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(low, held, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
