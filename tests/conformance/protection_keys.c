/* Memory with protection keys, which a thread opens and closes by a register of its own. */
#include "conform.h"

#define PAGE 4096ul
static uint8_t *shut, *open_page;
static int shut_key = -1, open_key = -1;

static const char *setup(void) {
    int all = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    shut = mmap(NULL, 4 * PAGE, all, flags, -1, 0);
    open_page = mmap(NULL, PAGE, all, flags, -1, 0);
    EXPECT(shut != MAP_FAILED && open_page != MAP_FAILED);
    fill(shut, 4 * PAGE, 1);
    fill(open_page, PAGE, 2);
    shut_key = pkey_alloc(0, 0);
    /* A processor that has none: the kernel gives away the one that all memory has, which cannot be set
     * up (EINVAL), or says at once that there is none left. */
    if (shut_key < 0 && (errno == ENOSPC || errno == EINVAL)) return NULL;
    open_key = pkey_alloc(0, 0);
    EXPECT(shut_key > 0 && open_key > 0 && shut_key != open_key);
    EXPECT(pkey_mprotect(shut, 4 * PAGE, all, shut_key) == 0);
    EXPECT(pkey_mprotect(open_page, PAGE, all, open_key) == 0);
    EXPECT(pkey_set(shut_key, PKEY_DISABLE_ACCESS) == 0);
    return NULL;
}

static const char *holds(unsigned seed) {
    if (shut_key < 0) return NULL;
    EXPECT(pkey_get(shut_key) == PKEY_DISABLE_ACCESS && pkey_get(open_key) == 0);
    EXPECT(there(shut) == 0 && there(open_page) == 1);
    EXPECT(filled(open_page, PAGE, 2));
    EXPECT(pkey_set(shut_key, 0) == 0);
    EXPECT(there(shut) == 1 && filled(shut, 4 * PAGE, seed));
    EXPECT(pkey_set(shut_key, PKEY_DISABLE_ACCESS) == 0);
    /* The keys can be used for more. */
    uint8_t *more = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(more != MAP_FAILED);
    EXPECT(pkey_mprotect(more, PAGE, PROT_READ | PROT_WRITE, shut_key) == 0 && there(more) == 0);
    EXPECT(munmap(more, PAGE) == 0);
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    if (shut_key < 0) return NULL;
    EXPECT(pkey_set(shut_key, 0) == 0);
    fill(shut, 4 * PAGE, 10 + (unsigned)n);
    EXPECT(pkey_set(shut_key, PKEY_DISABLE_ACCESS) == 0);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
