/* Keys: they are the kernel's of the parent's machine. A child has a session keyring of its own, which is
 * empty, and neither a sibling's nor that of whoever made it. */
#include "conform.h"
#include <linux/keyctl.h>

static long keyctl(int what, long a, long b, long c, long d) {
    return syscall(SYS_keyctl, what, a, b, c, d);
}

static long find(const char *name) {
    long at = KEY_SPEC_SESSION_KEYRING;
    return keyctl(KEYCTL_SEARCH, at, (long)"user", (long)name, 0);
}

static const char *add(const char *name) {
    long key = syscall(SYS_add_key, "user", name, "secret", 6, KEY_SPEC_SESSION_KEYRING);
    return key > 0 && find(name) == key ? NULL : "add_key";
}

static const char *setup(void) {
    EXPECT(keyctl(KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) > 0);
    return add("conform-parent");
}

static int mine;

static const char *holds(void) {
    char name[32];
    if (is_parent()) return find("conform-parent") > 0 ? NULL : "the parent's key";
    EXPECT(find("conform-parent") == -1 && errno == ENOKEY);
    for (int n = 1; n <= 2; n++) {
        snprintf(name, sizeof name, "conform-%d", n);
        EXPECT((find(name) > 0) == (mine == n));
    }
    return NULL;
}

static const char *check(void) { return holds(); }
static const char *change(int n) {
    char name[32];
    mine = n;
    snprintf(name, sizeof name, "conform-%d", n);
    return add(name);
}
/* A grandchild has neither. */
static const char *verify(int n) {
    EXPECT(mine == n);
    if (find("conform-1") == -1 && find("conform-2") == -1) mine = 0;
    const char *wrong_there = holds();
    mine = n;
    return wrong_there;
}
