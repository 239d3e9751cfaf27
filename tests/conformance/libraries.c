/* Shared objects: one that was loaded at run time is still there, another can be loaded, and
 * symbols are found. */
#include "conform.h"
#include <dlfcn.h>

static void *loaded, *second;
static double (*cosine)(double);
static int tag = 8;

static const char *setup(void) {
    loaded = dlopen("libm.so.6", RTLD_NOW);
    EXPECT(loaded != NULL);
    *(void **)&cosine = dlsym(loaded, "cos");
    return cosine != NULL ? NULL : "dlsym";
}

static const char *holds(int wanted) {
    Dl_info info;
    EXPECT(tag == wanted && cosine(0.0) == 1.0);
    EXPECT(dladdr(*(void **)&cosine, &info) != 0 && strstr(info.dli_fname, "libm") != NULL);
    EXPECT(dlsym(loaded, "sqrt") != NULL && dlsym(loaded, "no_such_function") == NULL);
    return NULL;
}

static const char *check(void) { return holds(8); }

static const char *change(int n) {
    tag = 10 + n;
    second = dlopen(n == 1 ? "libresolv.so.2" : "libutil.so.1", RTLD_NOW);
    return second != NULL ? NULL : "dlopen";
}

static const char *verify(int n) {
    EXPECT(second != NULL);
    return holds(10 + n);
}
