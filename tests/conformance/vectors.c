/* Registers of a thread that computes and never calls the kernel: SSE, AVX where there is one, x87,
 * and the control words of both. */
#include "conform.h"
#include <fenv.h>
#include <pthread.h>

static volatile int stop;
static volatile unsigned long rounds;
static uint8_t out[32];
static uint16_t x87;
static uint32_t mxcsr;
static int has_avx, tag = 3;

__attribute__((target("avx"))) static void spin_avx(void) {
    static const uint8_t in[32] __attribute__((aligned(32))) = "held in a vector register of 256";
    __asm__ volatile("vmovdqa (%0), %%ymm9\n\t"
                     "1: incq %1\n\tcmpl $0, %2\n\tje 1b\n\t"
                     "vmovdqu %%ymm9, (%3)"
                     :: "r"(in), "m"(rounds), "m"(stop), "r"(out) : "xmm9", "memory", "cc");
}

static void spin_sse(void) {
    static const uint8_t in[16] __attribute__((aligned(16))) = "held in xmm nine";
    __asm__ volatile("movdqa (%0), %%xmm9\n\t"
                     "1: incq %1\n\tcmpl $0, %2\n\tje 1b\n\t"
                     "movdqu %%xmm9, (%3)"
                     :: "r"(in), "m"(rounds), "m"(stop), "r"(out) : "xmm9", "memory", "cc");
}

static void *spinner(void *arg) {
    uint16_t upward = 0x37f | FE_UPWARD;
    __asm__ volatile("fldcw %0" :: "m"(upward));
    uint32_t value = 0x7f80; /* Flush to zero, round to nearest: as nobody has by default. */
    __asm__ volatile("ldmxcsr %0" :: "m"(value));
    if (has_avx) spin_avx();
    else spin_sse();
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    __asm__ volatile("fnstcw %0" : "=m"(x87));
    stop = 2;
    return arg;
}

static const char *setup(void) {
    pthread_t thread;
    has_avx = __builtin_cpu_supports("avx");
    return pthread_create(&thread, NULL, spinner, NULL) == 0 ? NULL : "pthread_create";
}

static const char *check(void) {
    unsigned long before = rounds;
    EXPECT(tag == 3 && stop == 0);
    for (int i = 0; i < 10000 && rounds == before; i++) usleep(1000);
    EXPECT(rounds != before);
    return NULL;
}

static const char *change(int n) {
    tag = 10 + n;
    stop = 1;
    for (int i = 0; i < 20000 && stop != 2; i++) usleep(1000);
    return stop == 2 ? NULL : "it did not stop";
}

static const char *verify(int n) {
    EXPECT(tag == 10 + n && (mxcsr & ~0x3fu) == (0x7f80 & ~0x3fu) && (x87 & 0xc00) == FE_UPWARD);
    if (has_avx) EXPECT(memcmp(out, "held in a vector register of 256", 32) == 0);
    else EXPECT(memcmp(out, "held in xmm nine", 16) == 0);
    return NULL;
}
