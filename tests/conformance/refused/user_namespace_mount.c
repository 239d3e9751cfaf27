/* Refused: is not the file of that path on this node, but one of a mount namespace of its own. Opened by that path, with
 * the rights of its node, a child would have another one. */
#include "user_namespace.h"
#include <sys/mount.h>

static const char *setup(void) {
    TRY(enter_mapped("0 0 1\n", "0 0 1\n"));
    EXPECT(unshare(CLONE_NEWNS) == 0 && mount("own", "/mnt", "tmpfs", 0, NULL) == 0);
    return open("/mnt/file", O_RDWR | O_CREAT, 0600) >= 0 ? NULL : "open";
}
static const char *check(void) { return access("/mnt/file", R_OK) == 0 ? NULL : "no"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
